"""Train a byte-level BPE with Hugging Face `tokenizers`, for data/train_tokenizer.py.

`tokenizers` learns the merges; minigpt/tokenizer/tokenizer.py runs them with tiktoken. Both give
the same ids although they work differently: tiktoken merges any two tokens whose bytes together are
a token, the lowest rank first; `tokenizers` merges only the pairs that it learned. But a token
exists because its pair was merged wherever it occurred, before any pair of a higher rank. So when
its turn comes, its bytes are never adjacent in another split, and the two never disagree.
"""

import re
from dataclasses import dataclass

from tokenizers import Regex, Tokenizer, models, pre_tokenizers, trainers

from minigpt.data.cleaning import clean
from minigpt.data.encoders import encoder_of
from minigpt.data.formats import FORMATS, TRAINED_ON, Entry, read_record, recognize
from minigpt.data.hashing import is_val
from minigpt.data.pipeline import read_chunks
from minigpt.data.readers.chunks import Reject
from minigpt.data.readers.records import records_in
from minigpt.tokenizer.huggingface import byte_characters
from minigpt.tokenizer.tokenizer import PATTERNS

_SENTENCE = re.compile(r".*?[。！？．…!?]+[\"')\]」』”’）】》〉］〕]*|.+", re.DOTALL)


def train_bpe(texts, n_ranks, pattern_name, min_frequency=2):
    """Return a `tokenizers.Tokenizer` trained on `texts` (an iterable of str).

    n_ranks:       the most tokens, with the 256 single bytes; fewer if no further pair occurs
                   min_frequency times in the texts
    pattern_name:  a key of PATTERNS, the pre-tokenization
    min_frequency: how often a pair must occur in the texts to become a token
    """
    tokenizer = Tokenizer(models.BPE())
    cut = pre_tokenizers.Split(Regex(PATTERNS[pattern_name]), "isolated")
    to_bytes = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([cut, to_bytes])
    trainer = trainers.BpeTrainer(
        vocab_size=n_ranks,
        min_frequency=min_frequency,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        special_tokens=[],  # ours come after the ranks
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    return tokenizer


def token_ranks(tokenizer):
    """Return token bytes → rank (the id) of a trained `tokenizers.Tokenizer`."""
    to_byte = {character: byte for byte, character in enumerate(byte_characters())}
    return {
        bytes(to_byte[character] for character in token): rank
        for token, rank in tokenizer.get_vocab().items()
    }


@dataclass
class Statistics:
    """What training_texts() has read and left out."""

    texts: int = 0
    characters: int = 0
    held_out: int = 0  # texts of the val split: left out
    unusable: int = 0  # records that have no text


def training_texts(source, val_fraction, statistics):
    """Yield (texts, size) for each chunk of a SourceFile: the train split alone.

    texts: cleaned texts of entries; of pairs question and answer, of conversations every turn, each
           a text of its own
    size:  bytes of the file that were read for them
    Left out is what data/prepare.py and data/prepare_sft.py hold out with the same `val_fraction`
    or a smaller one. Records in no format are counted in `statistics`, they are no error.
    """
    for chunk in read_chunks(source):
        texts = []
        for line, record in records_in(chunk):
            key, parts = _key_and_texts(record, chunk.source, line)
            if key is None:
                statistics.unusable += 1
            elif is_val(key, val_fraction):
                statistics.held_out += 1
            else:
                texts += parts
        statistics.texts += len(texts)
        statistics.characters += sum(map(len, texts))
        yield texts, chunk.size


def _key_and_texts(record, source, line):
    """Return (split key, [texts]) of a record, the key as data/prepare.py and data/prepare_sft.py
    compute it; (None, []) where the record has no text."""
    if isinstance(record, Reject):
        return None, []
    format = recognize(record, TRAINED_ON) or FORMATS["text"]
    sample = read_record(record, format.parse, source, line)
    if isinstance(sample, Entry):
        sample = sample._replace(text=clean(sample.text, sample.title))
    encoder = encoder_of(format.sample_type)
    if isinstance(sample, Reject) or not encoder.size(sample):
        return None, []
    return encoder.split_key(sample), encoder.texts(sample)


def sentences(text):
    """Split `text` into sentences; joined they are `text`.

    A vocabulary that is trained on sentences has no token across the end of a sentence (such as 。
    with the “ after it), so a text can be cut there, before or after encoding, and no id changes.
    """
    return _SENTENCE.findall(text)
