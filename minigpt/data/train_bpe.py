"""Training a byte-level BPE with Hugging Face `tokenizers`, for data/train_tokenizer.py.

The trainer's library learns the merges; minigpt/tokenizer/tokenizer.py runs them with tiktoken. The
two give the same ids although they work differently: tiktoken joins any two tokens whose bytes
together are a token, the lowest rank first, while the library joins only the pairs that it learned.
But a token exists because its pair was joined wherever it stood, before anything of a higher rank
was; so its bytes never lie side by side in another cut when their turn comes, and the two never
disagree.
"""

import re
from dataclasses import dataclass

from tokenizers import Regex, Tokenizer, models, pre_tokenizers, trainers

from minigpt.data.pipeline import SFT_FORMATS, PlainText
from minigpt.data.readers import Reject, is_val, records
from minigpt.tokenizer.huggingface import byte_characters
from minigpt.tokenizer.tokenizer import PATTERNS

# What a record is, by a field that no other kind has; one with none of them is an entry.
BY_FIELD = {
    "question": SFT_FORMATS["qa"],
    "instruction": SFT_FORMATS["alpaca"],
    "messages": SFT_FORMATS["chat"],
}
_SENTENCE = re.compile(r".*?[。！？．…!?]+[\"')\]」』”’）】》〉］〕]*|.+", re.DOTALL)


def train_bpe(texts, n_ranks, pattern_name, min_frequency=2):
    """A `tokenizers.Tokenizer` trained on `texts` (an iterable of str).

    n_ranks:       tokens at most, the 256 single bytes included; fewer where the texts hold no
                   further pair that stands min_frequency times
    pattern_name:  a key of PATTERNS
    min_frequency: how often a pair must stand in the texts to become a token
    """
    tokenizer = Tokenizer(models.BPE())
    cut = pre_tokenizers.Split(Regex(PATTERNS[pattern_name]), "isolated")
    to_bytes = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([cut, to_bytes])
    trainer = trainers.BpeTrainer(
        vocab_size=n_ranks,
        min_frequency=min_frequency,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        special_tokens=[],  # they are ours, behind the ranks
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    return tokenizer


def token_ranks(tokenizer):
    """Token bytes → rank of a trained `tokenizers.Tokenizer`: the ids that it gives itself."""
    to_byte = {character: byte for byte, character in enumerate(byte_characters())}
    return {
        bytes(to_byte[character] for character in token): rank
        for token, rank in tokenizer.get_vocab().items()
    }


@dataclass
class Tally:
    """What training_texts() has read and left out so far."""

    texts: int = 0
    characters: int = 0
    held_out: int = 0  # texts of the val split: left out
    unusable: int = 0  # records that have no text


def training_texts(source, val_fraction, tally):
    """Yield (texts, size) for each chunk of a corpus.Source: the training part alone.

    texts: cleaned texts of entries; of question–answer pairs both, of conversations every turn,
           each a text of its own
    size:  bytes of the file that they come from
    Left out is what data/prepare.py and data/prepare_sft.py hold out with the same `val_fraction`,
    or a smaller one. Records that are none of these are counted in `tally`, no error.
    """
    for chunk in source.chunks():
        texts = []
        for line, record in records(chunk):
            key, parts = _key_and_texts(record, chunk.source, line)
            if key is None:
                tally.unusable += 1
            elif is_val(key, val_fraction):
                tally.held_out += 1
            else:
                texts += parts
        tally.texts += len(texts)
        tally.characters += sum(map(len, texts))
        yield texts, chunk.size


def _key_and_texts(record, source, line):
    """(what decides between train and val, [texts]) of a record; the key is None where it has no
    text. It is read as data/prepare.py and data/prepare_sft.py read it."""
    if isinstance(record, Reject):
        return None, []
    kind = next((kind for field, kind in BY_FIELD.items() if field in record), PlainText())
    entry = kind.parse(record, source, line)
    if isinstance(entry, Reject):
        return None, []
    (entry,) = kind.ready([entry])
    return (kind.source(entry), kind.texts(entry)) if entry else (None, [])


def sentences(text):
    """`text` as its sentences; joined they are `text`.

    Trained on sentences, no token reaches over a sentence's end (a 。 and the “ after it, say), so
    that cutting a text there, before or after encoding, changes no id.
    """
    return _SENTENCE.findall(text)
