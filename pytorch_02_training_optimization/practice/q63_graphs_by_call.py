"""How many graphs does it take? Say it before you count.

A backend that counts compiles these three functions, with the settings that torch.compile has by default:

    def f(x, n=2):                 def g(x):                  def h(x):
        return torch.sin(x) * n        if x.sum() > 0:            return x + x.shape[0]
                                           return x * 2
                                       return x - 1

a is a float32 tensor of 6 rows and 3 columns, all of its numbers above 0. Before each line below everything that was
compiled is forgotten.
"""

# TODO: for each line the number of graphs that were made when its last call is done.
GRAPHS = {
    "f(a); f(a + 1); f(-a)": None,
    "f(a); f(a.double()); f(a)": None,
    "f(a); f(a.clone().requires_grad_()); f(a.detach())": None,
    "f(a, 2); f(a, 3); f(a, 4); f(a, 5)": None,
    "f(a, True); f(a, False); f(a, True)": None,
    "f(a[:5]); f(a[:4]); f(a[:3]); f(a[:2])": None,
    "f(a[:4]); f(a[:3]); f(a[:1]); f(a[:2])": None,
    "f(a); f(a.T); f(a)": None,
    "g(a); g(a + 1)": None,
    "g(a); g(-a); g(a)": None,
    "h(a); h(a[:5]); h(a[:4])": None,
}
