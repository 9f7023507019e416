"""Puts UniCP's hooks on a transformer and takes them off again. The only user of diffusers' hook registry."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from types import SimpleNamespace
from typing import Any

import torch
from diffusers.hooks import HookRegistry, ModelHook
from diffusers.hooks.hooks import BaseState, StateManager
from torch import nn

from unicp.attention.backends import leave_backends, see_backends
from unicp.attention.compiled import compiled_blocks, compiled_parts, put_interceptor, take_interceptors
from unicp.errors import AttachmentError, SettingsError, UnsupportedModelError
from unicp.models.finder import Unit
from unicp.runtime.engine import Engine
from unicp.runtime.inside import MODULATED
from unicp.runtime.text_keys import text_projections
from unicp.settings import Settings

ROOT_HOOK = "unicp_model"
BLOCK_HOOK = "unicp_block"
UNIT_HOOK = "unicp_unit"
TEXT_HOOK = "unicp_text_keys"
_COMPILED_LATER = "blocks were compiled after UniCP was enabled: nothing inside them is skipped or kept"
HOOKS = (ROOT_HOOK, BLOCK_HOOK, UNIT_HOOK, TEXT_HOOK)


class _NoState(BaseState):
    def reset(self) -> None:
        pass


class _Contexts(StateManager):
    """Holds nothing: it is how `cache_context` reaches us. Each thread has a context of its own."""

    def __init__(self) -> None:
        super().__init__(_NoState)  # type: ignore[arg-type]
        self._own = threading.local()

    def set_context(self, context: Any) -> None:
        """Enters a context in this thread, or with None leaves it."""
        # Before diffusers 0.41 a context was its name alone.
        is_name = isinstance(context, str)
        self._own.now = SimpleNamespace(name=context, step_index=None, num_inference_steps=None) if is_name else context

    def reset(self, *args: Any, **kwargs: Any) -> None:
        """Leaves the context of this thread."""
        self.set_context(None)

    @property
    def now(self) -> Any:
        """The context of the call under way, with `name`, `step_index` and `num_inference_steps`; None without one."""
        return getattr(self._own, "now", None)


class _Hook(ModelHook):
    """What all of UniCP's hooks share: a model that has one cannot be copied, since the copy would call the first."""

    def __reduce_ex__(self, protocol: Any) -> Any:
        raise AttachmentError(
            "to copy or pickle a model", "UniCP is enabled on it", "call unicp.disable first, and enable it on the copy"
        )


class _RootHook(_Hook):
    """Around the transformer."""

    _is_stateful = True

    def __init__(self, engine: Engine):
        super().__init__()
        self.engine = engine
        self.contexts = _Contexts()
        self._compiled = len(compiled_blocks(engine.map))

    def new_forward(self, module: nn.Module, *args: Any, **kwargs: Any) -> Any:
        if torch.compiler.is_compiling():
            _refuse_compiled_call()
        if self._compiled != (compiled := len(compiled_blocks(self.engine.map))):
            self._compiled = compiled
            # What hangs inside a compiled block makes it compile on its own, and is never called.
            _take_off(module, (BLOCK_HOOK, UNIT_HOOK, TEXT_HOOK))
            if self.engine.settings.level == "model":
                _slice_units(self.engine, self.engine.map.sliced_units)
            self.engine.log.warn("compiled", _COMPILED_LATER)
        forward = self.fn_ref.original_forward
        assert forward is not None
        return self.engine.call(forward, args, kwargs, self.contexts.now)

    def reset_state(self, module: nn.Module) -> nn.Module:
        self.contexts.reset()
        self.engine.runs.end_newest()
        return module


class _InnerHook(_Hook):
    """Around a module inside the transformer; `call` is a bound method of the engine.

    A compiled block holds no hook of ours: what it was compiled from is what it does at every step.
    """

    def __init__(self, call: Callable[..., Any], subject: Any):
        super().__init__()
        self.call, self.subject = call, subject

    def new_forward(self, module: nn.Module, *args: Any, **kwargs: Any) -> Any:
        forward = self.fn_ref.original_forward
        if torch.compiler.is_compiling():
            assert forward is not None
            return forward(*args, **kwargs)
        return self.call(self.subject, forward, args, kwargs)


def _refuse_compiled_call() -> None:
    """Raises; reached from a transformer alone that was compiled as a whole after UniCP was enabled on it."""
    raise _compiled_as_a_whole("to use UniCP")


# Lets the compiler call it as it is. torch.compiler.disable does the same, and imports the compiler for it.
_refuse_compiled_call._torchdynamo_disable = True  # type: ignore[attr-defined]


def attached_engine(transformer: nn.Module) -> Engine | None:
    """The engine whose hooks are on this transformer; None where UniCP is not on it."""
    registry = getattr(transformer, "_diffusers_hook", None)
    hook = None if registry is None else registry.hooks.get(ROOT_HOOK)
    return hook.engine if isinstance(hook, _RootHook) else None


def refuse_if_taken(transformer: nn.Module) -> None:
    """Raises AttachmentError where UniCP or another cache is on this transformer already."""
    engine = attached_engine(transformer)
    if engine is not None and engine.gate.is_closed:
        found = "a call that began before UniCP was disabled is under way in another thread"
        raise AttachmentError("to enable UniCP", found, "enable it once that call has ended")
    if engine is not None:
        raise AttachmentError(
            "to enable UniCP", "it is enabled on this transformer already", "call unicp.disable(pipe) first"
        )
    refuse_other_caches(transformer, "to enable UniCP")


def refuse_other_caches(transformer: nn.Module, asked: str = "a run with UniCP") -> None:
    """Raises AttachmentError where another cache is on this transformer, perhaps since UniCP was enabled."""
    other = getattr(transformer, "_cache_config", None)
    if other is not None:
        raise AttachmentError(
            asked,
            f"another cache is enabled on this transformer ({type(other).__name__})",
            "call transformer.disable_cache() first, or unicp.disable(pipe) to keep it",
        )
    if getattr(transformer, "_is_cached", False):
        raise AttachmentError(
            asked,
            "cache-dit is enabled on this transformer",
            "call cache_dit.disable_cache(pipe) first, or unicp.disable(pipe) to keep it",
        )


def refuse_if_compiled(module: nn.Module) -> None:
    """Raises AttachmentError for a transformer that was compiled as a whole; single compiled blocks are fine."""
    if hasattr(module, "_orig_mod") or getattr(module, "_compiled_call_impl", None) is not None:
        raise _compiled_as_a_whole("to enable UniCP")


def _compiled_as_a_whole(asked: str) -> AttachmentError:
    do = "compile its blocks instead: transformer.compile_repeated_blocks()"
    return AttachmentError(asked, "a transformer that was compiled as a whole", do)


def attach(engine: Engine) -> None:
    """Puts on the hooks that the engine's settings need; takes all of them off again if one cannot be put on."""
    transformer = engine.map.transformer
    refuse_if_taken(transformer)
    try:
        _register(transformer, _RootHook(engine), ROOT_HOOK)
        if engine.settings.level != "model":
            for block in engine.map.blocks:
                _register(block.module, _InnerHook(engine.inside.block_call, block), BLOCK_HOOK)
        _slice_units(engine, _hooked_units(engine))
        if engine.settings.text_keys_values:
            compiled = compiled_parts(engine.map)
            for unit in engine.map.units:
                # A hook inside a compiled block would make it compile again, and not be called.
                if unit.text_keys and id(unit.module) not in compiled:
                    for name, module in text_projections(unit.module).items():
                        hook = _InnerHook(engine.inside.projection_call, f"{unit.name}.{name}")
                        _register(module, hook, TEXT_HOOK)
    except BaseException:
        detach(transformer)
        raise
    _forget_child_registries(transformer)


def _slice_units(engine: Engine, units: Sequence[Unit]) -> None:
    """Puts a hook on each of these units, or where it is compiled an interceptor on its attention."""
    compiled = compiled_parts(engine.map)
    slices = engine.settings.slicing.widths and engine.settings.tolerance > 0
    take_interceptors(engine.map.transformer)
    for unit in units:
        if id(unit.module) not in compiled:
            _register(unit.module, _InnerHook(engine.inside.unit_call, unit), UNIT_HOOK)
        elif slices:
            put_interceptor(unit, engine.inside.attend)
            engine.inside.unseen.add(unit.name)
    if slices and units:
        see_backends(engine.map.transformer)


def detach(transformer: nn.Module) -> None:
    """Takes off all of UniCP's hooks; without any, nothing happens. What the modules compute is as it was before."""
    take_interceptors(transformer)
    leave_backends(transformer)
    _take_off(transformer, HOOKS)
    _forget_child_registries(transformer)


def _take_off(transformer: nn.Module, names: tuple[str, ...]) -> None:
    for module in transformer.modules():
        registry = getattr(module, "_diffusers_hook", None)
        if registry is None:
            continue
        for name in names:
            if name in registry.hooks:
                hook = registry.hooks[name]
                with _inside_accelerate(module, getattr(hook, "wrapped", None)):
                    registry.remove_hook(name, recurse=False)
                    _forget_forward(module)


def _forget_child_registries(transformer: nn.Module) -> None:
    """Lets diffusers look for the hooks inside anew when it next sets a cache context."""
    registry = HookRegistry.check_if_exists_or_initialize(transformer)
    if hasattr(registry, "invalidate_child_registries_cache"):
        registry.invalidate_child_registries_cache()
        return
    # diffusers 0.38 to 0.40 keep the list without a way to forget it, earlier ones keep none.
    for module in transformer.modules():
        inner = getattr(module, "_diffusers_hook", None)
        if inner is not None and hasattr(inner, "_child_registries_cache"):
            inner._child_registries_cache = None


def _register(module: nn.Module, hook: ModelHook, name: str) -> None:
    registry = HookRegistry.check_if_exists_or_initialize(module)
    inner = None if registry.hooks else module.__dict__.get("_old_forward")
    with _inside_accelerate(module, inner):
        registry.register_hook(hook, name)
        hook.wrapped = module.forward  # type: ignore[attr-defined]


@contextmanager
def _inside_accelerate(module: nn.Module, inner: Any) -> Iterator[None]:
    """Lets the registry work on `inner`, if that is the forward that a hook of accelerate calls, not on that hook.

    A pipeline with offloading takes accelerate's hooks off and puts them on again after each of its calls; what
    stands outside them would be lost then, what stands inside stays.
    """
    if inner is None or module.__dict__.get("_old_forward") is not inner:
        yield
        return
    outer, module.forward = module.forward, inner
    try:
        yield
    finally:
        module.__dict__["_old_forward"], module.forward = module.forward, outer


def _forget_forward(module: nn.Module) -> None:
    # The registry leaves the class's own forward behind as an attribute of the instance: leave the module as found.
    forward = module.__dict__.get("forward")
    if getattr(forward, "__func__", None) is type(module).forward:
        del module.__dict__["forward"]


def _is_parallel(transformer: nn.Module) -> bool:
    """Whether processes share this model: by diffusers' own means, or with parameters that are parts (DTensor)."""
    if getattr(transformer, "_parallel_config", None) is not None:
        return True
    return any(hasattr(parameter, "device_mesh") for parameter in transformer.parameters())


def refuse_if_gathered(transformer: nn.Module) -> None:
    """Raises UnsupportedModelError for a model under FSDP: where one process skips, the others would wait for ever."""
    kinds = {kind.__name__ for module in transformer.modules() for kind in type(module).__mro__}
    if kinds & {"FSDPModule", "FullyShardedDataParallel"}:
        found = "a model under FSDP, whose processes gather parameters at every call but may decide differently"
        raise UnsupportedModelError("to enable UniCP", found, "use context or tensor parallelism, or no UniCP")


def _refuse_what_works_on_the_output_alone(engine: Engine) -> None:
    settings = engine.settings
    if settings.level != "model" and compiled_blocks(engine.map):
        found = "compiled blocks, inside which nothing can be skipped"
        raise UnsupportedModelError(f'level "{settings.level}"', found, 'use level "model", with slicing or without')
    if (settings.level != "model" or settings.slicing.widths) and _is_parallel(engine.map.transformer):
        found = "a model that is parallel over processes, each of which would decide by its own share"
        asked = "sliced attention" if settings.level == "model" else f'level "{settings.level}"'
        raise UnsupportedModelError(asked, found, 'use level "model" without slicing')


def _units_of_signals(engine: Engine) -> list[Unit]:
    """The units in which a policy decides that wants to see more than the input of its cache point."""
    if not engine.signals:
        return []
    asked, do = f"the policy {engine.settings.policy!r} with signals {', '.join(engine.signals)}", "use another policy"
    transformer, first = engine.map.transformer, engine.inside.first_attention
    if unknown := sorted(set(engine.signals) - {MODULATED, "input"}):
        raise SettingsError(asked, f"unknown signals {', '.join(unknown)}", f'use "input" or "{MODULATED}"')
    if engine.settings.level != "model":
        raise SettingsError(asked, f'level "{engine.settings.level}"', 'use it with level "model"')
    if first is None:
        raise UnsupportedModelError(asked, f"no attention in the first block of {type(transformer).__name__}", do)
    if compiled_blocks(engine.map):
        raise UnsupportedModelError(asked, "compiled blocks, inside which nothing can be seen", do)
    if any(getattr(getattr(module, "_hf_hook", None), "offload", False) for module in transformer.modules()):
        # A call that ends in its first block would leave that block's weights on the device.
        raise UnsupportedModelError(asked, "weights that are offloaded module by module", f"{do}, or offload models")
    return [first]


def _hooked_units(engine: Engine) -> list[Unit]:
    settings: Settings = engine.settings
    _refuse_what_works_on_the_output_alone(engine)
    wanted: list[Unit] = []
    if settings.level == "unit":
        wanted = list(engine.map.units_with(settings.roles))
        if not wanted:
            found = ", ".join(sorted({unit.role for unit in engine.map.units}))
            raise UnsupportedModelError(
                f"units with roles {', '.join(settings.roles)}", f"roles {found}", "name roles that the model has"
            )
    elif refusal := engine.map.level_refusal(settings.level):
        raise UnsupportedModelError(
            f'level "{settings.level}"', f"{type(engine.map.transformer).__name__}: {refusal}", 'use level "model"'
        )
    wanted += [unit for unit in _units_of_signals(engine) if unit not in wanted]
    if settings.slicing.widths and settings.level in ("model", "unit"):
        known = {unit.name for unit in wanted}
        sliceable = engine.map.sliced_units
        if not sliceable:
            reasons = "; ".join(sorted({unit.why_not for unit in engine.map.units if unit.why_not}))
            raise UnsupportedModelError("sliced attention", reasons or "no attention", "use Slicing() (off)")
        wanted += [unit for unit in sliceable if unit.name not in known]
    return wanted
