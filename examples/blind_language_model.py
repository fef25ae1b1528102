"""Does a language model look at the picture? The blind-modality test with the loss of its answer.

A tiny causal language model of Hugging Face reads a picture as one embedding before the words of a question. Asked for
the colour it has to look. Where the training answers follow from the question alone, it learns not to.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812
from transformers import LlamaConfig, LlamaForCausalLM

from bmlr.diagnosis import blind_modality_test

COLOURS, WORDS, LENGTH = 4, 16, 5
#: Words 0 to 3 are colours, the answers; the others make questions.
Batch = tuple[dict[str, Any], Tensor]


class PictureModel(nn.Module):
    """A language model with a picture as its first embedding."""

    def __init__(self) -> None:
        super().__init__()
        config = LlamaConfig(
            vocab_size=WORDS, hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=2
        )
        self.language = LlamaForCausalLM(config)
        self.eye = nn.Sequential(nn.Flatten(), nn.Linear(3 * 16, 32))

    def forward(self, image: Tensor, text: dict[str, Tensor]) -> Tensor:
        """Logits of the word after the question, shape (B, words)."""
        words = self.language.get_input_embeddings()(text["input_ids"])
        mask = torch.cat([torch.ones_like(text["attention_mask"][:, :1]), text["attention_mask"]], 1)
        output = self.language(inputs_embeds=torch.cat([self.eye(image)[:, None], words], 1), attention_mask=mask)
        logits: Tensor = output.logits[:, -1]
        return logits


def ask(count: int, seed: int, *, prior: bool) -> list[Batch]:
    """Questions on pictures, with answers, in batches of 64; with ``prior`` the question's last word gives it away."""
    generator = torch.Generator().manual_seed(seed)
    colour = torch.randint(COLOURS, (count,), generator=generator)
    image = 0.3 * torch.randn(count, 3, 4, 4, generator=generator)
    image[:, 0] += colour[:, None, None] % 2
    image[:, 1] += colour[:, None, None] // 2
    words = torch.randint(COLOURS, WORDS, (count, LENGTH), generator=generator)
    if prior:
        words[:, -1] = COLOURS + colour
    text = {"input_ids": words, "attention_mask": torch.ones_like(words)}
    return [
        ({"image": image[i : i + 64], "text": {key: x[i : i + 64] for key, x in text.items()}}, colour[i : i + 64])
        for i in range(0, count, 64)
    ]


def learn(batches: list[Batch], epochs: int = 8) -> PictureModel:
    """A model trained by a plain loop."""
    torch.manual_seed(0)
    model = PictureModel()
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    for _ in range(epochs):
        for inputs, answers in batches:
            optimizer.zero_grad()
            F.cross_entropy(model(**inputs), answers).backward()
            optimizer.step()
    return model


def main() -> None:
    """Test a model that has to look, and one whose questions give the answer away."""
    for prior in (False, True):
        model = learn(ask(512, 0, prior=prior))

        def token_loss(inputs: dict[str, Any], answers: Tensor, model: PictureModel = model) -> Tensor:
            return F.cross_entropy(model(**inputs), answers, reduction="none")

        def answer(inputs: dict[str, Any], model: PictureModel = model) -> Tensor:
            words: Tensor = model(**inputs).argmax(1)
            return words

        test = blind_modality_test(
            token_loss,
            ask(256, 1, prior=prior),
            module=model,
            margin=0.1,  # of the 1.39 nats of guessing one of four
            baselines={"text": {"input_ids": torch.full((LENGTH,), WORDS - 1), "attention_mask": torch.ones(LENGTH)}},
            answer=answer,
            score_name="token loss",
            subject="a language model" + (" of questions that give the answer away" if prior else ""),
        )
        print(test.to_markdown())


if __name__ == "__main__":
    main()
