"""The product of gradient and direction is a number; its gradient is the product of Hessian and direction.

create_graph=True records the first backward pass, so the gradient is a result that can be differentiated like any other.
Reverse mode never makes a matrix of derivatives, only the product of a vector with one; here that vector is the direction.
Two walks through the graph, whatever n is. The leaf is a new one on the same memory, so point keeps its own flag and its
.grad, and torch.autograd.grad returns gradients where backward() would add them to every leaf that the loss knows. From
this product come the largest curvature (by power iteration), Newton steps (by conjugate gradients) and influence
functions; torch.func.jvp of torch.func.grad computes it as well, forward over reverse.
"""

from collections.abc import Callable

import torch


def hessian_vector_product(
    loss_of: Callable[[torch.Tensor], torch.Tensor], point: torch.Tensor, direction: torch.Tensor
) -> torch.Tensor:
    leaf = point.detach().requires_grad_()
    (gradient,) = torch.autograd.grad(loss_of(leaf), leaf, create_graph=True)
    (product,) = torch.autograd.grad(gradient @ direction, leaf)
    return product
