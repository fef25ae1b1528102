"""Frequencies of words, weighted by how few texts have them."""

from __future__ import annotations

import collections
from collections.abc import Sequence

import numpy as np

from bmlr.data.transforms._tokens import Vocabulary, split_words


class TfIdf:
    r"""Vectors of texts: counts of words, weighted, of Euclidean length 1.

    The weight of a word is :math:`\ln\frac{1 + n}{1 + d} + 1` with the number n of training texts and the number d of
    those that have it, as scikit-learn's ``TfidfVectorizer`` has it by default. A text without a known word is zero.

    Args:
        words: The words, in the order of the features.
        weights: Weight of each.

    Example:
        >>> tfidf = TfIdf.of_texts(["a red bird", "a blue bird", "a dog", "a dog"], 3, "The texts")
        >>> tfidf.words
        ('a', 'bird', 'dog')
        >>> [[f"{value:.2f}" for value in vector] for vector in tfidf.vectors(["a dog", "fish"])]
        [['0.55', '0.00', '0.83'], ['0.00', '0.00', '0.00']]
    """

    def __init__(self, words: Sequence[str], weights: Sequence[float]) -> None:
        self.words, self.weights = tuple(words), tuple(weights)
        self._indices = {word: index for index, word in enumerate(self.words)}

    @classmethod
    def of_texts(cls, texts: Sequence[str], size: int, subject: str) -> TfIdf:
        """The most frequent words of training texts that are in two of them at least.

        Raises:
            ValueError: If there is none; ``subject`` says of what.
        """
        words = Vocabulary.of_shared(texts, size, subject).words
        counts = collections.Counter(word for text in texts for word in set(split_words(text)))
        return cls(words, [float(np.log((1 + len(texts)) / (1 + counts[word])) + 1) for word in words])

    def vectors(self, texts: Sequence[str]) -> np.ndarray:
        """Vectors (N, D), float32."""
        vectors = np.zeros((len(texts), len(self.words)))
        for vector, text in zip(vectors, texts, strict=True):
            for word in split_words(text):
                if (index := self._indices.get(word)) is not None:
                    vector[index] += self.weights[index]
        norms = np.linalg.norm(vectors, axis=1, keepdims=True)
        scaled: np.ndarray = (vectors / np.where(norms > 0, norms, 1)).astype(np.float32)
        return scaled
