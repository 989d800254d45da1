"""Where is a language model cut, and how does it run up to there and on from there?

A hook point of decoder layer L is the residual stream after it (`resid_post`) or what its MLP or attention
adds to that stream (`mlp_out`, `attn_out`). Which layer class, embedding, mask, position code or final norm a
family has is left to the model's own forward pass.
"""

import inspect
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any, Literal

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from dmsae.errors import CycleFailed
from dmsae.models import LoadedModel, is_near, probe_ids

Hook = Literal["resid_post", "mlp_out", "attn_out"]

ADDED = (
    ("post_attention_layernorm", "post_feedforward_layernorm"),  # normed on the way out: Gemma-2, OLMo-2
    ("post_self_attn_layernorm", "post_mlp_layernorm"),  # the same in GLM-4
    ("self_attn", "mlp"),
    ("attn", "mlp"),
    ("attention", "mlp"),
    ("self_attention", "mlp"),
    ("self_attn", "block_sparse_moe"),
    ("self_attn", "feed_forward"),
)
"""Attention and MLP, as layers name what they add to the residual stream; the first pair found counts."""


@dataclass(frozen=True)
class HookPoint:
    """A place in a language model, resolved to the module whose output stands there."""

    layer: int
    """Decoder layer, counted from 0."""
    hook: Hook
    path: str
    """Name of the module, from the root of the language model."""
    n_outputs: int | None
    """Length of the tuple that the module returns, its first entry the activations; null: those alone."""


class _Reached(Exception):
    """The forward pass has come as far as it should."""


def decoder_layers(loaded: LoadedModel) -> tuple[str, nn.ModuleList]:
    """Find the list of the decoder's layers and its path: the one outermost list of as many modules.

    Raises: CycleFailed with `hook_unsupported`.
    """
    found: dict[str, nn.ModuleList] = {}
    for path, module in loaded.model.named_modules():
        is_within = any(path.startswith(f"{outer}.") for outer in found)
        if isinstance(module, nn.ModuleList) and len(module) == loaded.n_layers and not is_within:
            found[path] = module
    if len(found) != 1:
        names = ", ".join(found) or "none"
        raise _unsupported(
            "layer", f"{loaded.model_type} has no one list of its {loaded.n_layers} decoder layers: {names}"
        )
    return next(iter(found.items()))


def resolve_hook(loaded: LoadedModel, *, layer: int, hook: Hook) -> HookPoint:
    """Find the module of a hook point, and try on a handful of tokens that the model can be cut there.

    What MLP and attention add must make up, with the layer's input, its output; and running on from what the
    lower layers gave must give the model's own logits.

    Raises: CycleFailed with `hook_unsupported`.
    """
    layers_path, layers = decoder_layers(loaded)
    layer_path = f"{layers_path}.{layer}"
    path = layer_path
    if hook != "resid_post":
        names = _added_names(loaded, layers[layer])
        _check_sum(loaded, layer_path, names)
        path = f"{layer_path}.{names[0] if hook == 'attn_out' else names[1]}"
    point = HookPoint(layer, hook, path, _trace(loaded, [path])[path].n_outputs)
    _check_running_on(loaded, point)
    return point


@torch.no_grad()
def run_lower(
    loaded: LoadedModel, point: HookPoint, *, input_ids: Int[Tensor, "n t"], is_token: Bool[Tensor, "n t"]
) -> Float[Tensor, "n t d_model"]:
    """Run the model up to a hook point and no further.

    Padding may stand anywhere; no token sees it, and what stands there is meaningless. Several threads may do
    so at once.

    Shapes: int64 ids in; raw units out, float32, on the model's device.
    """
    seen: list[Tensor] = []
    own_thread = threading.get_ident()

    def stop(_module: nn.Module, _inputs: Any, output: Any) -> None:
        if threading.get_ident() == own_thread:
            seen.append(_first(output))
            raise _Reached

    handle = loaded.model.get_submodule(point.path).register_forward_hook(stop)
    try:
        loaded.model(**_inputs(loaded, input_ids, is_token))
    except _Reached:
        return _at_least_float32(seen[0])
    finally:
        handle.remove()
    raise _unsupported("hook", f"{point.path} never ran")


def run_upper(
    loaded: LoadedModel,
    point: HookPoint,
    *,
    input_ids: Int[Tensor, "n t"],
    is_token: Bool[Tensor, "n t"],
    activations: Float[Tensor, "n t d_model"],
) -> Float[Tensor, "n t vocab"]:
    """Run on from `activations` at a hook point to the logits, differentiable in them.

    The model's own forward pass runs whole, but for the layers up to a `resid_post`, which are stepped over;
    so scaled embeddings, kinds of layers, position codes, final norm and final soft-cap stay what they are.
    What stands at padding never matters, not even where it is not finite.

    Shapes: float32 activations in raw units in, float32 logits on the model's device out.
    Mutates: swaps layers of the model and puts them back, whatever happens.
    """
    given = activations.to(loaded.device).masked_fill(~is_token.to(loaded.device)[..., None], 0.0)
    with _replacing(loaded, point, given):
        logits: Tensor = loaded.model(**_inputs(loaded, input_ids, is_token)).logits
    return _at_least_float32(logits)


@contextmanager
def changing(
    loaded: LoadedModel,
    point: HookPoint,
    change: Callable[[Float[Tensor, "n t d_model"]], Float[Tensor, "n t d_model"]],
) -> Iterator[None]:
    """Let what `change` makes of the activations at a hook point stand there, in every pass meanwhile.

    Shapes: float32 in and out, in raw units; the model goes on in its own type.
    Mutates: hooks the module, and takes the hook away again.
    """

    def replace(_module: nn.Module, _inputs: Any, output: Any) -> Any:
        x = _first(output)
        return _with_first(output, change(_at_least_float32(x)).to(x.dtype))

    handle = loaded.model.get_submodule(point.path).register_forward_hook(replace)
    try:
        yield
    finally:
        handle.remove()


class _StepOver(nn.Module):
    """Stands where a decoder layer stood and passes on the hidden state, or gives another one."""

    def __init__(self, layer: nn.Module, n_outputs: int | None, given: Tensor | None) -> None:
        super().__init__()
        self.layer = layer
        self._n_outputs, self._given = n_outputs, given

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        hidden = _hidden(args, kwargs)
        return _packed(hidden if self._given is None else self._given.to(hidden.dtype), self._n_outputs)

    def __getattr__(self, name: str) -> Any:
        """Answer as the real layer would: models ask their layers for their kind of attention."""
        try:
            return super().__getattr__(name)
        except AttributeError:
            return getattr(super().__getattr__("layer"), name)


@contextmanager
def _replacing(loaded: LoadedModel, point: HookPoint, given: Tensor) -> Iterator[None]:
    """Let `given` stand at the hook point."""
    with ExitStack() as restore:
        if point.hook == "resid_post":
            layers: Any = loaded.model.get_submodule(point.path.rpartition(".")[0])
            for i in range(point.layer + 1):
                restore.callback(layers.__setitem__, i, layers[i])
                layers[i] = _StepOver(layers[i], point.n_outputs, given if i == point.layer else None)
        else:
            module = loaded.model.get_submodule(point.path)
            handle = module.register_forward_hook(
                lambda _module, _inputs, output: _with_first(output, given.to(_first(output).dtype))
            )
            restore.callback(handle.remove)
        yield


def _inputs(
    loaded: LoadedModel, input_ids: Int[Tensor, "n t"], is_token: Bool[Tensor, "n t"]
) -> dict[str, Any]:
    """Say what the model is called with.

    Attention is causal, so where padding stands on the right alone, no token sees it and no mask is needed.
    Elsewhere the mask hides it, and positions count tokens only.
    """
    inputs: dict[str, Any] = {
        "input_ids": input_ids.to(loaded.device, torch.int64),
        "use_cache": False,
    }
    if bool((is_token[:, 1:] > is_token[:, :-1]).any()):
        inputs["attention_mask"] = is_token.long().to(loaded.device)
        if "position_ids" in inspect.signature(loaded.model.forward).parameters:
            positions = (is_token.long().cumsum(dim=1) - 1).clamp(min=0)
            inputs["position_ids"] = positions.to(loaded.device)
    return inputs


@dataclass(frozen=True)
class _Trace:
    """What went into a module and what came out, as it was then: some layers add to it in place."""

    input: Tensor
    output: Tensor
    n_outputs: int | None


@torch.no_grad()
def _trace(loaded: LoadedModel, paths: list[str]) -> dict[str, _Trace]:
    """Run the model on a handful of tokens and look into some of its modules."""
    seen: dict[str, _Trace] = {}

    def look_into(path: str) -> Any:
        def look(_module: nn.Module, args: Any, kwargs: Any, output: Any) -> None:
            n_outputs = len(output) if isinstance(output, tuple) else None
            seen[path] = _Trace(_hidden(args, kwargs).clone(), _first(output).clone(), n_outputs)

        return loaded.model.get_submodule(path).register_forward_hook(look, with_kwargs=True)

    with ExitStack() as restore:
        for path in paths:
            restore.callback(look_into(path).remove)
        loaded.model(input_ids=probe_ids(loaded), use_cache=False)
    return seen


def _added_names(loaded: LoadedModel, layer: nn.Module) -> tuple[str, str]:
    names = dict(layer.named_children())
    for attention, mlp in ADDED:
        if attention in names and mlp in names:
            return attention, mlp
    raise _unsupported(
        "hook",
        f"the layers of {loaded.model_type} name no attention and MLP that this code knows, "
        f"but {', '.join(names)}",
    )


def _check_sum(loaded: LoadedModel, layer_path: str, names: tuple[str, str]) -> None:
    """Refuse modules whose outputs are not what the layer adds to the residual stream."""
    paths = [f"{layer_path}.{name}" for name in names]
    traces = _trace(loaded, [layer_path, *paths])
    if len(traces) == 3:
        whole, attention, mlp = (traces[path] for path in (layer_path, *paths))
        total = whole.input + attention.output + mlp.output
        if is_near(total, whole.output, loaded.dtype):
            return
    raise _unsupported(
        "hook",
        f"in {loaded.model_type} the outputs of {paths[0]} and {paths[1]} are not what {layer_path} adds "
        "to the residual stream",
    )


@torch.no_grad()
def _check_running_on(loaded: LoadedModel, point: HookPoint) -> None:
    """Refuse a model in which more than the residual stream goes from layer to layer."""
    input_ids = probe_ids(loaded)
    is_token = torch.ones_like(input_ids, dtype=torch.bool)
    activations = run_lower(loaded, point, input_ids=input_ids, is_token=is_token)
    found = run_upper(loaded, point, input_ids=input_ids, is_token=is_token, activations=activations)
    own = _at_least_float32(loaded.model(input_ids=input_ids, use_cache=False).logits)
    if not is_near(found, own, loaded.dtype):
        raise _unsupported(
            "hook", f"running on from {point.path} does not give what {loaded.model_type} itself gives"
        )


def _hidden(args: tuple[Any, ...], kwargs: dict[str, Any]) -> Tensor:
    hidden: Tensor = next(value for value in (*args, *kwargs.values()) if isinstance(value, Tensor))
    return hidden


def _first(output: Any) -> Tensor:
    first: Tensor = output[0] if isinstance(output, tuple) else output
    return first


def _with_first(output: Any, value: Tensor) -> Any:
    return (value, *output[1:]) if isinstance(output, tuple) else value


def _packed(value: Tensor, n_outputs: int | None) -> Any:
    return value if n_outputs is None else (value, *[None] * (n_outputs - 1))


def _at_least_float32(values: Tensor) -> Tensor:
    return values.to(torch.promote_types(values.dtype, torch.float32))


def _unsupported(setting: str, rule: str) -> CycleFailed:
    param = f"activations.{setting}"
    return CycleFailed(
        "hook_unsupported", f"{param}: {rule}; choose resid_post or another model.", param=param
    )
