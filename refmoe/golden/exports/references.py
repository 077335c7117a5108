"""The references of the definitions: plain PyTorch, as text, since whoever reads them has no refmoe."""

LAYER = '''
import torch


@torch.no_grad()
def run(hidden_states, topk_ids, topk_weights, gemm1_weights, gemm2_weights):
    x = hidden_states.to(torch.float64)
    output = torch.zeros_like(x)
    for e in range(gemm1_weights.shape[0]):
        token, slot = torch.nonzero(topk_ids == e, as_tuple=True)
        up, gate = (x[token] @ gemm1_weights[e].to(torch.float64).T).chunk(2, dim=-1)
        rows = (gate / (1 + torch.exp(-gate)) * up) @ gemm2_weights[e].to(torch.float64).T
        output.index_add_(0, token, rows * topk_weights[token, slot].to(torch.float64)[:, None])
    return output.to(hidden_states.dtype)
'''.lstrip()

PRODUCT = '''
import torch


@torch.no_grad()
def run(a, b, offsets):
    c = torch.empty((a.shape[0], b.shape[1]), dtype=torch.float64, device=a.device)
    for e in range(b.shape[0]):
        rows = slice(int(offsets[e]), int(offsets[e + 1]))
        c[rows] = a[rows].to(torch.float64) @ b[e].to(torch.float64).T
    return c.to(a.dtype)
'''.lstrip()
