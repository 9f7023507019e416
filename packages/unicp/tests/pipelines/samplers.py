"""Schedulers of diffusers by what models are trained for: name, and what it is configured with."""

from __future__ import annotations

from typing import Any

_FLOW = {"use_flow_sigmas": True, "prediction_type": "flow_prediction", "flow_shift": 3.0}
FLOW: dict[str, dict[str, Any]] = {
    "FlowMatchEulerDiscrete": {"shift": 3.0},
    "FlowMatchEulerDiscrete, stochastic": {"shift": 3.0, "stochastic_sampling": True},
    "FlowMatchHeunDiscrete": {"shift": 3.0},
    "FlowMatchLCM": {"shift": 3.0},
    "UniPCMultistep": _FLOW,
    "DPMSolverMultistep": _FLOW,
    "DPMSolverMultistep, stochastic": _FLOW | {"algorithm_type": "sde-dpmsolver++"},
    "DPMSolverSinglestep": _FLOW,
    "DEISMultistep": _FLOW,
    "SASolver": _FLOW,
}
DIFFUSION = (
    "DDIM",
    "DDPM",
    "PNDM",
    "LMSDiscrete",
    "EulerDiscrete",
    "EulerAncestralDiscrete",
    "HeunDiscrete",
    "KDPM2Discrete",
    "KDPM2AncestralDiscrete",
    "DPMSolverMultistep",
    "DPMSolverSinglestep",
    "DEISMultistep",
    "UniPCMultistep",
    "SASolver",
    "LCM",
    "TCD",
    "CogVideoXDDIM",
    "CogVideoXDPM",
)
