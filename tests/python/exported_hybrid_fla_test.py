"""Lightning layers of an export with flash-linear-attention's kernels: as near to fp32 as plain
PyTorch in the same 16 bits, however the tokens come. Needs a GPU and that package. Where it refuses
a backward (padded rows on Hopper with Triton 3.4 to 3.7.0), plain PyTorch stands in and is tested."""
import importlib.util
import sys
import unittest
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent))

from exported_hybrid import ExportedHybridCase, load  # noqa: E402

import torch  # noqa: E402

# One of each: every kind of call is compiled and tuned anew, nearly three minutes together.
LENGTHS = 65, 1, 1, 40, 100  # of calls, one after the other
B, H, D = 3, 4, 64


def distance(actual, expected):
    actual, expected = actual.float(), expected.float()
    return ((actual - expected).norm() / expected.norm()).item()


@unittest.skipUnless(torch.cuda.is_available() and importlib.util.find_spec("fla"),
                     "needs a GPU and flash-linear-attention")
class ExportedHybridFlaTest(ExportedHybridCase):
    @classmethod
    def setUpClass(cls):
        super().setUpClass()
        cls.bf16 = load(cls.export, torch.bfloat16).cuda()
        cls.code = sys.modules[type(cls.bf16).__module__]

    def run_pieces(self, attention, inputs, keep):
        """Outputs of all tokens and the last state, handed over in calls of these lengths."""
        outputs, state, begin = [], None, 0
        for length in LENGTHS:
            part = slice(begin, begin + length)
            q, k, v = (x[:, :, part] for x in inputs)
            padding = None if keep is None else keep[:, part]
            o, state = attention(q, k, v, q.size(-1) ** -0.5, padding, state)
            outputs.append(o)
            begin += length
        return torch.cat(outputs, dim=2), state

    def check(self, padded, with_gradients):
        torch.manual_seed(1)
        T = sum(LENGTHS)
        inputs = [torch.randn(B, T, H, D, device="cuda", dtype=torch.bfloat16).transpose(1, 2)
                  for _ in range(3)]
        keep = None
        if padded:
            keep = torch.ones(B, T, dtype=torch.bool, device="cuda")
            keep[0, :T // 3] = False
            keep[-1, T - T // 4:] = False
        weight = torch.randn(B, H, T, D, device="cuda")
        results = []
        for attention, dtype in ((self.code.lightning_attention, torch.bfloat16),
                                 (self.code.lightning_attention_by_chunks, torch.bfloat16),
                                 (self.code.lightning_attention_by_chunks, torch.float32)):
            own = [x.detach().to(dtype).requires_grad_(with_gradients) for x in inputs]
            o, state = self.run_pieces(attention, own, keep)
            self.assertEqual(state.dtype, torch.float32)
            tokens = slice(None) if keep is None else keep[:, None, :, None].expand_as(o)
            gradients = torch.autograd.grad((o.float() * weight)[tokens].sum() + state.sum(), own) \
                if with_gradients else ()
            results.append([o[tokens], state, *gradients])
        for here, plain, exact in zip(*results):
            self.assertLess(distance(here, exact), 3 * distance(plain, exact) + 4e-3,
                            f"padded {padded}, with gradients {with_gradients}")

    def test_one_kernel_gives_what_plain_pytorch_gives(self):
        self.assertIsNotNone(self.code.fla_kernels(True, False))
        self.assertIsNotNone(self.code.fla_kernels(False, True))
        for padded in (False, True):
            with torch.no_grad():
                self.check(padded, False)
            self.check(padded, True)

    @torch.no_grad()
    def test_logits_in_bf16_are_as_near_to_fp32_as_without_it(self):
        ids = torch.arange(2, 402)[None].cuda()
        exact = load(self.export).cuda()(ids).logits
        fla = self.bf16(ids).logits
        self.addCleanup(setattr, self.code, "fla_kernels", self.code.fla_kernels)
        self.code.fla_kernels = lambda padded, with_gradients: None
        plain = self.bf16(ids).logits
        self.assertFalse(torch.equal(fla, plain))  # so the kernels did run
        self.assertLess(distance(fla, exact), 1.5 * distance(plain, exact))


if __name__ == "__main__":
    unittest.main()
