"""A graph is used again where its guards hold; where a number or a length changes, the second graph has a symbol for it.

Numbers inside a tensor are never guarded. Its dtype, its strides and whether it wants a gradient are, and going back to what
was there before costs nothing: the first graph is still kept, so a third call finds it. An int that changes is made a symbol,
and so is a length that changes, which is why a row of numbers or lengths takes two graphs and not one each. True and False
are no numbers to Dynamo: each has its own graph, but there are only two. A length of 1 is never part of a symbol, because 1
broadcasts. An if over a tensor ends the graph at its condition: one graph makes the condition, and each branch is compiled
when it is first taken, not before. A shape read in the function is the same symbol, so h takes no more graphs than f.
"""

GRAPHS = {
    "f(a); f(a + 1); f(-a)": 1,
    "f(a); f(a.double()); f(a)": 2,
    "f(a); f(a.clone().requires_grad_()); f(a.detach())": 2,
    "f(a, 2); f(a, 3); f(a, 4); f(a, 5)": 2,
    "f(a, True); f(a, False); f(a, True)": 2,
    "f(a[:5]); f(a[:4]); f(a[:3]); f(a[:2])": 2,
    "f(a[:4]); f(a[:3]); f(a[:1]); f(a[:2])": 3,
    "f(a); f(a.T); f(a)": 2,
    "g(a); g(a + 1)": 2,
    "g(a); g(-a); g(a)": 3,
    "h(a); h(a[:5]); h(a[:4])": 2,
}
