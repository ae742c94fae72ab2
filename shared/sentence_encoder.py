"""Texts → points on a sphere, by a sentence transformer: texts of like meaning lie close (Reimers and Gurevych 2019).

A model is a folder as ``sentence-transformers`` saves it, or one with the network in ONNX. Only data is read:
``config.json``, ``model.safetensors`` or ``model.onnx``, ``tokenizer.json``, and where they are there ``modules.json``,
``sentence_bert_config.json`` and ``1_Pooling/config.json``. A checkpoint that is a pickle is refused.
"""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from safetensors.torch import load_file
from tokenizers import Tokenizer
from torch import Tensor

from shared.devices import pick_dtype
from shared.errors import InvalidInput, LienzoError, ModelRefused
from shared.files import sha256

log = logging.getLogger(__name__)

_BATCH = 32
_LONGEST = 256  # tokens, where the folder names no limit

_Network = Callable[[Tensor, Tensor], Tensor]
"""Token ids ``[N, L]`` and mask ``[N, L]``, 1 where there is a token → activations ``[N, L, D]``, or ``[N, D]``."""


class SentenceEncoder:
    """A sentence transformer on the CPU. Encoding changes nothing, so threads may share one.

    Attributes:
        dimensions: length D of an embedding.
        fingerprint: SHA-256 over the files that decide what comes out.
    """

    def __init__(self, network: _Network, tokenizer: Tokenizer, pooling: str, fingerprint: str):
        self._network = network
        self._tokenizer = tokenizer
        self._pooling = pooling
        self.fingerprint = fingerprint
        self.dimensions = self._embed([tokenizer.encode("a picture").ids]).shape[1]

    @classmethod
    def open(cls, folder: str | Path, *, precision: str = "auto", threads: int | None = None) -> SentenceEncoder:
        """Read a model's folder; ``model.safetensors`` is preferred to ``model.onnx``.

        Args:
            precision: of the projections, see :func:`shared.devices.pick_dtype`; an ONNX network has its own.
            threads: of ONNX Runtime; PyTorch's are the process's own.

        Raises:
            InvalidInput: there is no such folder.
            ModelRefused: the folder is incomplete, holds a pickle alone, or a network of another kind.
        """
        folder = Path(folder)
        if not folder.is_dir():
            raise InvalidInput(
                f"'{folder}' is not a folder.",
                hint="Name the folder of a sentence transformer: model.safetensors or model.onnx, tokenizer.json, "
                "config.json.",
                field="sentences",
            )
        file = next((f for f in map(folder.joinpath, _NETWORKS) if f.is_file()), None)
        if file is None:
            pickle = ", and a pickle is not read: it may run code" if any(folder.glob("*.bin")) else ""
            raise ModelRefused(
                f"'{folder}' holds none of {', '.join(_NETWORKS)}{pickle}.",
                hint="sentence-transformers saves safetensors: `SentenceTransformer(NAME).save(FOLDER)`.",
            )
        try:
            config = _json(folder / "config.json")
            limit = _json(folder / "sentence_bert_config.json", {}).get("max_seq_length") or _LONGEST
            limit = min(int(limit), int(config.get("max_position_embeddings", limit)))
            pooling = _pooling(folder)
            tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
            tokenizer.no_padding()
            tokenizer.enable_truncation(limit)
            dtype = pick_dtype(precision)
            network = _Bert.read(file, config, dtype) if file.suffix == ".safetensors" else _onnx(file, threads)
            hashes = [sha256(each) for each in (file, folder / "tokenizer.json", folder / "config.json")]
            fingerprint = hashlib.sha256(" ".join([*hashes, pooling, str(limit), str(dtype)]).encode()).hexdigest()
            return cls(network, tokenizer, pooling, fingerprint)
        except LienzoError:
            raise
        except Exception as error:  # those of tokenizers and ONNX Runtime have no other base
            raise ModelRefused(
                f"the sentence transformer in '{folder}' cannot be read: {type(error).__name__}: {error}.",
                hint="Copy the folder again, or save the model anew.",
            ) from error

    def encode(self, texts: Sequence[str], *, on_text: Callable[[int, int], None] | None = None) -> np.ndarray:
        """The embeddings of ``texts``, ``[N, D]`` float32, each of length 1.

        What a text has beyond the model's limit of tokens is not read.

        Args:
            on_text: called after each batch with what is done and the total.
        """
        # One by one: the tokenizer's own batches start threads, which a later fork does not survive.
        # Half a surrogate pair, as a file's name may hold, is no text to it.
        tokens = [self._tokenizer.encode(text.encode(errors="replace").decode()).ids for text in texts]
        embeddings = np.empty((len(texts), self.dimensions), np.float32)
        order = sorted(range(len(texts)), key=lambda i: len(tokens[i]))  # a batch is as long as its longest text
        for start in range(0, len(order), _BATCH):
            rows = order[start : start + _BATCH]
            embeddings[rows] = self._embed([tokens[i] for i in rows])
            if on_text is not None:
                on_text(start + len(rows), len(order))
        return embeddings

    @torch.inference_mode()
    def _embed(self, tokens: list[list[int]]) -> np.ndarray:
        longest = max(1, *map(len, tokens))
        ids = torch.tensor([row + [0] * (longest - len(row)) for row in tokens])
        mask = torch.tensor([[1] * len(row) + [0] * (longest - len(row)) for row in tokens])
        found = self._network(ids, mask)
        if found.dim() == 3:
            if self._pooling == "cls":
                found = found[:, 0]
            else:
                found = (found * mask[..., None]).sum(1) / mask.sum(1, keepdim=True).clamp(min=1)
        return F.normalize(found.float(), dim=1).numpy()


_NETWORKS = ("model.safetensors", "model.onnx", "onnx/model.onnx")
_PROJECTIONS = ("qkv", "attention.output.dense", "intermediate.dense", "output.dense")


@dataclass(frozen=True)
class _Bert:
    """BERT (Devlin et al. 2019) without dropout: texts of one segment, GELU, absolute positions.

    Attributes:
        tensors: by their names in a checkpoint of ``transformers``; the projections to queries, keys and values of a
            layer are one, ``LAYER.qkv``.
    """

    tensors: Mapping[str, Tensor]
    layers: int
    heads: int
    epsilon: float
    dtype: torch.dtype

    @classmethod
    def read(cls, file: Path, config: Mapping[str, Any], dtype: torch.dtype) -> _Bert:
        for name, expected in (("model_type", "bert"), ("hidden_act", "gelu"), ("position_embedding_type", "absolute")):
            if config.get(name, expected) != expected:
                raise ModelRefused(
                    f"'{file}' has {name} '{config[name]}', but only '{expected}' is known here.",
                    hint="Export the model to ONNX, as model.onnx in a folder without model.safetensors.",
                )
        tensors = {name: tensor.float() for name, tensor in load_file(file).items() if tensor.is_floating_point()}
        for layer in range(config["num_hidden_layers"]):
            prefix = f"encoder.layer.{layer}."
            for part in ("weight", "bias"):
                names = [f"{prefix}attention.self.{name}.{part}" for name in ("query", "key", "value")]
                tensors[f"{prefix}qkv.{part}"] = torch.cat([tensors.pop(name) for name in names])
            tensors |= {
                f"{prefix}{name}.{part}": tensors[f"{prefix}{name}.{part}"].to(dtype)
                for name in _PROJECTIONS
                for part in ("weight", "bias")
            }
        sizes = (config[name] for name in ("num_hidden_layers", "num_attention_heads", "layer_norm_eps"))
        return cls(tensors, *sizes, dtype)

    def __call__(self, ids: Tensor, mask: Tensor) -> Tensor:
        embeddings = [
            self.tensors[f"embeddings.{name}_embeddings.weight"] for name in ("word", "position", "token_type")
        ]
        words, positions, types = embeddings
        x = self._norm(F.embedding(ids, words) + positions[: ids.shape[1]] + types[0], "embeddings.LayerNorm")
        # Without padding attention needs no mask, and is faster.
        seen = None if bool(mask.all()) else mask.bool()[:, None, None, :]
        for layer in range(self.layers):
            prefix = f"encoder.layer.{layer}."
            qkv, dense, wide, narrow = (prefix + name for name in _PROJECTIONS)
            q, k, v = self._linear(x, qkv).unflatten(-1, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
            mixed = F.scaled_dot_product_attention(q, k, v, attn_mask=seen).transpose(1, 2).flatten(2)
            x = self._norm(x + self._linear(mixed, dense), f"{prefix}attention.output.LayerNorm")
            x = self._norm(x + self._linear(F.gelu(self._linear(x, wide)), narrow), f"{prefix}output.LayerNorm")
        return x

    def _linear(self, x: Tensor, name: str) -> Tensor:
        return F.linear(x.to(self.dtype), self.tensors[f"{name}.weight"], self.tensors[f"{name}.bias"]).float()

    def _norm(self, x: Tensor, name: str) -> Tensor:
        weight, bias = self.tensors[f"{name}.weight"], self.tensors[f"{name}.bias"]
        return F.layer_norm(x, weight.shape, weight, bias, self.epsilon)


def _onnx(file: Path, threads: int | None) -> _Network:
    """A network in ONNX: its output ``sentence_embedding`` where it has one, else its first."""
    from shared.onnx_runtime import open_session  # only those who have such a model wait for it

    session = open_session(file, device="cpu", threads=threads)
    inputs, outputs = ([each.name for each in nodes] for nodes in (session.get_inputs(), session.get_outputs()))
    output = "sentence_embedding" if "sentence_embedding" in outputs else outputs[0]

    def run(ids: Tensor, mask: Tensor) -> Tensor:
        given = {"input_ids": ids, "attention_mask": mask, "token_type_ids": torch.zeros_like(ids)}
        (found,) = session.run([output], {name: given[name].numpy() for name in inputs})
        return torch.from_numpy(found)

    return run


def _pooling(folder: Path) -> str:
    """``mean`` or ``cls``: how the activations of a text's tokens become one vector.

    Raises:
        ModelRefused: the folder asks for what is not known here.
    """
    modules = [module["type"].rpartition(".")[2] for module in _json(folder / "modules.json", [])]
    config = _json(folder / "1_Pooling" / "config.json", {})
    modes = [name for name, used in config.items() if name.startswith("pooling_mode") and used is True]
    modes = modes or [f"pooling_mode_{config.get('pooling_mode', 'mean')}_tokens"]
    known = {"pooling_mode_mean_tokens": "mean", "pooling_mode_cls_token": "cls", "pooling_mode_cls_tokens": "cls"}
    if len(modes) != 1 or modes[0] not in known or not set(modules) <= {"Transformer", "Pooling", "Normalize"}:
        raise ModelRefused(
            f"'{folder}' is made of {', '.join(modules) or 'unnamed modules'} with {', '.join(modes)}; known here are "
            "Transformer, Pooling (mean or CLS) and Normalize."
        )
    return known[modes[0]]


def _json(file: Path, default: Any = None) -> Any:
    if default is not None and not file.is_file():
        return default
    return json.loads(file.read_text(encoding="utf-8"))
