"""Text and image by two Transformers of Hugging Face, trained by BMLR in their Trainer.

The encoders are small and drawn at random, so that nothing is downloaded; in place of ``BertModel(config)`` stands
``BertModel.from_pretrained(name)``. The captions tell the class to all but a few samples, the images to few.

Run ``python examples/hf_trainer.py``. It takes half a minute.
"""

from __future__ import annotations

import tempfile

import numpy as np
import torch
from torch import Tensor, nn
from transformers import (
    BertConfig,
    BertModel,
    EvalPrediction,
    PrinterCallback,
    TrainingArguments,
    ViTConfig,
    ViTModel,
)

import bmlr
from bmlr.integrations.hf import BalancedTrainer

CLASSES = 4


class Classifier(nn.Module):
    """A model as people write it, without this library."""

    def __init__(self) -> None:
        super().__init__()
        text = BertConfig(vocab_size=50, hidden_size=32, num_hidden_layers=1, num_attention_heads=2)
        image = ViTConfig(hidden_size=32, num_hidden_layers=1, num_attention_heads=2, image_size=16, patch_size=8)
        self.bert, self.vit = BertModel(text), ViTModel(image)
        self.head = nn.Linear(64, CLASSES)

    def forward(self, input_ids: Tensor, attention_mask: Tensor, pixel_values: Tensor) -> dict[str, Tensor]:
        """Logits of shape (B, C)."""
        text = self.bert(input_ids, attention_mask).pooler_output
        image = self.vit(pixel_values).pooler_output
        return {"logits": self.head(torch.cat([text, image], 1))}


def make_samples(count: int, seed: int) -> list[dict[str, Tensor | int]]:
    """Captions whose last words tell the class, and noisy images of one bright quarter."""
    generator = torch.Generator().manual_seed(seed)
    samples: list[dict[str, Tensor | int]] = []
    for label in torch.randint(CLASSES, (count,), generator=generator).tolist():
        words = torch.randint(10, 50, (8,), generator=generator)
        if torch.rand(1, generator=generator) < 0.9:
            words[3:] = label
        image = torch.randn(3, 16, 16, generator=generator)
        top, left = divmod(label, 2)
        image[:, 8 * top : 8 * top + 8, 8 * left : 8 * left + 8] += 1.0
        samples.append(
            {
                "input_ids": words,
                "attention_mask": torch.ones(8, dtype=torch.int64),
                "pixel_values": image,
                "labels": label,
            }
        )
    return samples


def accuracy(result: EvalPrediction) -> dict[str, float]:
    """Accuracy of the prediction of both."""
    return {"accuracy": float(np.mean(np.asarray(result.predictions).argmax(1) == result.label_ids))}


def main() -> None:
    """Train with and without a method, and print what each modality can do alone."""
    train, val = make_samples(2000, 0), make_samples(500, 1)
    batch = {key: torch.stack([torch.as_tensor(s[key]) for s in val]) for key in val[0]}
    targets = batch.pop("labels")
    for method in (bmlr.methods.Joint(), bmlr.BMLR(), bmlr.methods.DGL()):
        torch.manual_seed(0)
        net = Classifier()
        model = bmlr.wrap(
            net,
            encoders={"text": "bert", "image": "vit"},
            inputs={"text": ("input_ids", "attention_mask"), "image": "pixel_values"},
            example={key: value[:4] for key, value in batch.items()},
        )
        with tempfile.TemporaryDirectory() as folder:
            args = TrainingArguments(
                folder, num_train_epochs=6, per_device_train_batch_size=32, learning_rate=1e-3, report_to="none",
                save_strategy="no", logging_strategy="no", disable_tqdm=True, use_cpu=True,
            )  # fmt: skip
            trainer = BalancedTrainer(
                model, args, method=method, train_dataset=train, eval_dataset=val, compute_metrics=accuracy
            )
            trainer.remove_callback(PrinterCallback)
            trainer.train()
            fused = trainer.evaluate()["eval_accuracy"]
        with torch.no_grad():
            prediction = method.eval().predict(model.eval()(batch))
        alone = {
            name: f"{100 * float((logits.argmax(1) == targets).float().mean()):.1f}"
            for name, logits in prediction.unimodal_logits.items()
        }
        print(f"{type(method).__name__}: {100 * fused:.1f} % multimodal, {alone} % alone")


if __name__ == "__main__":
    main()
