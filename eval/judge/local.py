"""Judges that need no server: a model in this process, and ROUGE-L against the reference.

Decisions: (1) a local judge's label is the single token for it at the start of an answer, plus
every token that differs from it only in white space (or in case, unless the labels differ only in
case); questions go through the model one at a time, so that no verdict depends on padding; (2) the
system message is prepended to the user's if the chat template refuses system messages; (3) the
judge's files are not trusted: no remote code, no pickled weights.
"""

from __future__ import annotations

import copy
import math
import re
from collections.abc import Sequence
from functools import cached_property
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from eval.graders.rouge import f_measures
from eval.judge.template import Template
from eval.judge.types import Failure, Question, Reading, Record, Reply, plain_by, reading_of
from pipeline.data.tasks import Example
from pipeline.errors import InputError
from pipeline.models.trust import Trust, check_pickles

if TYPE_CHECKING:
    from pipeline.data.render import Renderer

_ANY_QUESTION = Question("What is the capital of France?", "Paris.", "I do not know.", "Paris.")
_OPEN_REASONING = re.compile(r"<(think|thinking|reasoning)>\s*\Z")


class LocalJudge:
    """A causal language model in this process; its verdict is the probability of two labels."""

    reads = "label"
    keeps_labels_only = True

    def __init__(
        self,
        model: str,
        *,
        revision: str | None = None,
        dtype: str = "float32",
        quantize: str | None = None,
        device: str | None = None,
    ):
        """Set up a judge; the model is loaded at the first question.

        Args:
            model: hub id, folder, embedded name, or the folder of a step.
            revision: hub revision.
            dtype: 'float32', 'bfloat16' or 'float16' for the model; its output layer is always
                float32, because probabilities of labels are too coarse otherwise.
            quantize: 'nf4' for linear layers in 4 bits (see pipeline/models/quantize.py).
            device: by default an accelerator if there is one.

        Raises:
            InputError: for a folder with pickled weights (decision 3).
        """
        check_pickles(str(Path(model).expanduser()), Trust())
        self.model, self.revision, self.dtype, self.device = model, revision, dtype, device
        self.quantize = quantize

    def identity(self) -> dict[str, Any]:
        """The weights and their precision."""
        from pipeline.models.locate import locate
        from pipeline.steps.identity import EMBEDDED_MODEL, model_identity

        # Weights of a step are in a subfolder; the folder itself also has records that may change.
        place = self.model if self.model == EMBEDDED_MODEL else locate(self.model)
        return {
            "engine": "local",
            "model": model_identity(place, self.revision),
            "dtype": self.dtype,
            "replies": "log probabilities",
            **({} if self.quantize is None else {"quantize": self.quantize}),
        }

    def check(self, template: Template) -> None:
        """Find out, from its config and tokenizer alone, that this judge can be asked.

        Raises:
            InputError: if they are not there, a label is not one token, or its chat template begins
                every answer with reasoning.
        """
        try:
            self._label_ids(template)
            ids = self._prompt_ids(_ANY_QUESTION, template)
        except InputError as error:
            raise InputError(f"the judge cannot be asked: {error}") from None
        shown = self._renderer.tokenizer.decode(ids)
        if _OPEN_REASONING.search(shown):
            raise InputError(
                f"the chat template of the judge {self.model} begins every answer with reasoning, "
                "so that no label comes first; use a model that does not, or serve it and write "
                "engine: openai with reasoning: true"
            )

    def ask(self, questions: Sequence[Question], template: Template, record: Record) -> None:
        """Compute the labels' log probabilities, question by question; see `Engine`."""
        import torch

        from pipeline.decoding.batching import logits_to_keep

        model, renderer = self._model, self._renderer
        labels = self._label_ids(template)
        for question in questions:
            ids = self._prompt_ids(question, template)
            if renderer.window is not None and len(ids) > renderer.window:
                reason = f"the prompt has {len(ids)} tokens, but the judge reads {renderer.window}"
                record(question, Failure(reason))
                continue
            with torch.no_grad():
                ids_BT = torch.tensor([ids], device=model.device)
                logits_BTV = model(ids_BT, use_cache=False, **logits_to_keep(model, 1)).logits
            logprobs_V = logits_BTV[0, -1].float().log_softmax(-1)
            logprobs = [logprobs_V[ids].logsumexp(-1).item() for ids in labels]
            if all(map(math.isfinite, logprobs)):
                record(question, {"logprobs": logprobs, "usage": {"prompt_tokens": len(ids)}})
            else:
                record(question, Failure(f"the labels' log probabilities are {logprobs}"))

    def read(self, reply: Reply, template: Template) -> Reading:
        """The second label's share of the probability of both labels."""
        assert "logprobs" in reply
        return reading_of(*reply["logprobs"])

    @cached_property
    def _commit(self) -> str | None:
        """The commit under which replies are cached."""
        known = self.identity()["model"]
        return known.get("base", known).get("revision")

    @cached_property
    def _renderer(self) -> Renderer:
        from pipeline.data.render import Renderer
        from pipeline.models.load import end_ids, load_tokenizer, window_of

        window = window_of(self.model, revision=self._commit)
        tokenizer = load_tokenizer(self.model, revision=self._commit)
        ends = end_ids(self.model, revision=self._commit)
        return Renderer(tokenizer, end_ids=ends, window=window)

    @cached_property
    def _model(self) -> Any:
        import torch

        from pipeline.models.load import load_model

        device = self.device
        if device is None:
            found = torch.accelerator.current_accelerator(check_available=True)
            device = "cpu" if found is None else found.type
        model = load_model(
            self.model,
            revision=self._commit,
            dtype=self.dtype,
            quantize=self.quantize,
            device=device,
        ).eval()
        if self.quantize is None:  # else it is there already
            model = model.to(device)
        if self.dtype != "float32":
            # A copy, because the output layer may share its weights with the embeddings.
            head = copy.deepcopy(model.get_output_embeddings()).float()
            head.register_forward_pre_hook(lambda _, inputs: (inputs[0].float(),))
            model.set_output_embeddings(head)
        return model

    def _prompt_ids(self, question: Question, template: Template) -> list[int]:
        messages = template.messages(question, self.reads)
        renderer = self._renderer
        try:
            return renderer.prompt_ids(Example("judge", messages, ""))
        except InputError:
            if len(messages) == 1:
                raise
        joined = "\n\n".join(message["content"] for message in messages)  # decision 2
        return renderer.prompt_ids(Example("judge", [{"role": "user", "content": joined}], ""))

    def _label_ids(self, template: Template) -> list[list[int]]:
        """The tokens of each of the two labels (decision 1)."""
        example = Example("judge", [{"role": "user", "content": ""}], "")
        ids = [self._renderer.answer_ids(example, label)[:-1] for label in template.labels]
        if any(len(tokens) != 1 for tokens in ids) or ids[0] == ids[1]:
            raise InputError(
                f"labels {' and '.join(template.labels)} of template {template.name} are "
                f"{len(ids[0])} and {len(ids[1])} tokens for {self.model}: each must be one token, "
                "and they must differ; change labels in a copy of the template"
            )
        tokenizer = self._renderer.tokenizer
        texts = tokenizer.batch_decode([[number] for number in range(len(tokenizer))])
        plain = plain_by(template.labels)
        return [
            [i for i, text in enumerate(texts) if i == own or plain(text) == plain(label)]
            for (own,), label in zip(ids, template.labels, strict=True)
        ]


class ReferenceJudge:
    """The answer with the higher ROUGE-L against the reference wins; equal scores tie.

    Deterministic and offline, but no measure of quality; results say so.
    """

    reads = "reference"
    keeps_labels_only = False

    def identity(self) -> dict[str, Any]:
        """The measure and the version of the library that computes it."""
        return {
            "engine": "reference",
            "measure": "rougeL F, stemmed, tokens of all scripts",
            "rouge_score": version("rouge-score"),
        }

    def ask(self, questions: Sequence[Question], template: object, record: Record) -> None:
        """Score both answers of every question; see `Engine`."""
        for question in questions:
            reference = question.reference
            if reference is None:
                record(question, Failure("no reference to compare with"))
                continue
            first = f_measures(question.first, reference)
            second = f_measures(question.second, reference)
            if first is None or second is None:
                record(
                    question,
                    Failure("the reference has no letter or digit that ROUGE could read"),
                )
            else:
                record(question, {"rouge_l": [first["rougeL"], second["rougeL"]]})

    def read(self, reply: Reply, template: object) -> Reading:
        """1 for the second, 0 for the first, 0.5 for equal scores."""
        assert "rouge_l" in reply
        first, second = reply["rouge_l"]
        return Reading(0.5 if first == second else float(second > first))
