"""Uses the library alone, as installed: a transformer with random weights in a denoising loop of one's own.

python scripts/use_library.py
"""

from __future__ import annotations

import subprocess
import sys
import time
from typing import Any

SECONDS = 0.3  # that `import unicp` may take
NOT_NEEDED = ("typer", "rich", "av", "transformers", "matplotlib", "unicp_bench", "unicp_testbeds")


def import_seconds() -> float:
    """Seconds of `import unicp`, in a process of its own; it fails where torch comes with it."""
    code = "import time; t = time.perf_counter(); import unicp, sys; assert 'torch' not in sys.modules; "
    code += "print(time.perf_counter() - t)"
    times = [float(subprocess.run([sys.executable, "-c", code], capture_output=True, check=True).stdout) for _ in "abc"]
    return min(times)


def main() -> None:
    """The check; see the module's docstring."""
    seconds = import_seconds()
    assert seconds < SECONDS, f"import unicp took {seconds:.2f} s, more than {SECONDS} s"

    import torch
    from diffusers import FlowMatchEulerDiscreteScheduler, WanTransformer3DModel

    import unicp

    torch.manual_seed(0)
    transformer: Any = WanTransformer3DModel(
        num_attention_heads=2, attention_head_dim=16, in_channels=4, out_channels=4, text_dim=16, freq_dim=32,
        ffn_dim=64, num_layers=2,
    ).eval()  # fmt: skip
    noise, text = torch.randn(1, 4, 3, 8, 8), torch.randn(1, 6, 16)

    def denoise() -> torch.Tensor:
        scheduler: Any = FlowMatchEulerDiscreteScheduler()
        scheduler.set_timesteps(20)
        sample = noise
        for timestep in scheduler.timesteps:
            output = transformer(
                hidden_states=sample, timestep=timestep.expand(1), encoder_hidden_states=text, return_dict=False
            )[0]
            sample = scheduler.step(output, timestep, sample, return_dict=False)[0]
        return sample

    with torch.no_grad():
        plain = denoise()
        with unicp.enable(transformer, "balanced") as session:
            begin = time.perf_counter()
            fast = denoise()
            seconds = time.perf_counter() - begin
            print(session.summary())
        again = denoise()
    assert torch.equal(plain, again), "disabled, the model must be what it was"
    assert torch.isfinite(fast).all() and not torch.equal(plain, fast), "nothing was served"
    loaded = [name for name in NOT_NEEDED if name in sys.modules]
    print(f"20 steps in {seconds:.2f} s; loaded besides: {', '.join(loaded) or 'nothing'}")


if __name__ == "__main__":
    main()
