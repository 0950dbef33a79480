"""The operations of the demo's tasks, as tables: what can be done to lists, words, texts, dictionaries and numbers, in
words and in Python.

An operation takes a value of one kind and gives one of the same or another kind; one that gives `result` ends the
function. `{n}` stands for a number from 3 to 30, `{c}` for a letter. All wordings of an operation mean the same.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Kind = Literal["numbers", "words", "text", "scores", "number", "result"]
KINDS: tuple[Kind, ...] = ("numbers", "words", "text", "scores", "number")


@dataclass(frozen=True, slots=True)
class Operation:
    """One line of a function. The variable that it reads or assigns is named after the kind of its value."""

    name: str
    takes: Kind
    gives: Kind
    code: str
    wordings: tuple[str, ...]


def _filter(kind: Kind, name: str, condition: str, *wordings: str) -> Operation:
    item = {"numbers": "x", "words": "w", "text": "c"}[kind]
    kept = f"{item} for {item} in {kind} if {condition}"
    return Operation(name, kind, kind, f'text = "".join({kept})' if kind == "text" else f"{kind} = [{kept}]", wordings)


def _map(kind: Kind, name: str, value: str, *wordings: str) -> Operation:
    item = {"numbers": "x", "words": "w"}[kind]
    return Operation(name, kind, kind, f"{kind} = [{value} for {item} in {kind}]", wordings)


def _items(name: str, key: str, value: str, condition: str, *wordings: str) -> Operation:
    code = f"scores = {{{key}: {value} for k, v in scores.items(){condition}}}"
    return Operation(name, "scores", "scores", code, wordings)


def _replace(kind: Kind, name: str, value: str, *wordings: str) -> Operation:
    return Operation(name, kind, kind, f"{kind} = {value}", wordings)


def _convert(takes: Kind, gives: Kind, name: str, value: str, *wordings: str) -> Operation:
    return Operation(name, takes, gives, f"{gives} = {value}", wordings)


def _fold(kind: Kind, name: str, value: str, *wordings: str) -> Operation:
    return Operation(name, kind, "result", f"return {value}", wordings)


NUMBERS = (
    _filter("numbers", "even", "x % 2 == 0", "keep the even numbers", "leave only even ones", "select the even ones"),
    _filter("numbers", "odd", "x % 2 == 1", "keep the odd numbers", "leave only odd ones", "select the odd ones"),
    _filter("numbers", "above", "x > {n}", "keep the numbers above {n}", "select numbers greater than {n}"),
    _filter("numbers", "below", "x < {n}", "keep the numbers below {n}", "select numbers less than {n}"),
    _filter("numbers", "multiples", "x % {n} == 0", "keep the multiples of {n}", "select numbers divisible by {n}"),
    _filter("numbers", "positive", "x > 0", "keep the positive numbers", "drop zero and negative numbers"),
    _filter("numbers", "negative", "x < 0", "keep the negative numbers", "select the ones below zero"),
    _map("numbers", "add", "x + {n}", "add {n} to each number", "increase every number by {n}"),
    _map("numbers", "subtract", "x - {n}", "subtract {n} from each number", "decrease every number by {n}"),
    _map("numbers", "multiply", "x * {n}", "multiply each number by {n}", "scale every number by {n}"),
    _map("numbers", "square", "x * x", "square each number", "replace every number by its square"),
    _map("numbers", "negate", "-x", "negate each number", "flip the sign of every number"),
    _map("numbers", "absolute", "abs(x)", "take absolute values", "remove the sign of each number"),
    _map("numbers", "remainder", "x % {n}", "take each number modulo {n}", "take remainders after division by {n}"),
    _replace("numbers", "ascending", "sorted(numbers)", "sort the numbers", "put the numbers in ascending order"),
    _replace("numbers", "descending", "sorted(numbers)[::-1]", "sort from high to low", "order them downwards"),
    _replace("numbers", "backwards", "numbers[::-1]", "reverse the list of numbers", "turn the list around"),
    _replace("numbers", "different", "sorted(set(numbers))", "sort without repeats", "sort the different numbers"),
    _replace("numbers", "first", "numbers[:3]", "take the first three numbers", "cut the list after three"),
    _replace("numbers", "skip", "numbers[1:]", "skip the first number", "leave out the number in front"),
    _fold("numbers", "sum", "sum(numbers)", "return the sum of the numbers", "give back their total"),
    _fold("numbers", "largest", "max(numbers, default=0)", "return the largest number", "give back the maximum"),
    _fold("numbers", "smallest", "min(numbers, default=0)", "return the smallest number", "give back the minimum"),
    _fold("numbers", "count", "len(numbers)", "return how many numbers there are", "give back the count of numbers"),
    _fold("numbers", "numbers", "numbers", "return the numbers", "give back the list of numbers"),
)
WORDS = (
    _filter("words", "long", "len(w) > 4", "keep the long words", "select words over four letters"),
    _filter("words", "short", "len(w) < 6", "keep the short words", "select words under six letters"),
    _filter("words", "start", 'w.startswith("{c}")', 'keep words starting with "{c}"', 'select those with "{c}" first'),
    _filter("words", "end", 'w.endswith("{c}")', 'keep words ending with "{c}"', 'select those with "{c}" last'),
    _filter("words", "containing", '"{c}" in w', 'keep words that contain "{c}"', 'select those with "{c}" inside'),
    _map("words", "upper", "w.upper()", "write each word in upper case", "put every word in capitals"),
    _map("words", "capital", "w.capitalize()", "capitalize each word", "give every word a capital"),
    _map("words", "mirror", "w[::-1]", "reverse each word", "spell every word backwards"),
    _map("words", "initial", "w[:1]", "take the initial of each word", "cut every word to its first letter"),
    _map("words", "suffix", 'w + "{c}"', 'append "{c}" to each word', 'add "{c}" at the end of every word'),
    _replace("words", "alphabetical", "sorted(words)", "sort the words", "put the words in alphabetical order"),
    _replace("words", "by_length", "sorted(words, key=len)", "sort the words by length", "put the short words first"),
    _replace("words", "last_first", "words[::-1]", "reverse the list of words", "put the last word first"),
    _replace("words", "some", "words[:2]", "take the first two words", "cut the list after two"),
    _convert("words", "numbers", "lengths", "[len(w) for w in words]", "take the length of each", "measure the words"),
    _fold("words", "sentence", '" ".join(words)', "return the words joined by spaces", "give back one line of words"),
    _fold("words", "dashes", '"-".join(words)', "return the words joined by dashes", "give back a dashed line"),
    _fold("words", "longest", 'max(words, key=len, default="")', "return the longest word", "give back the long word"),
    _fold("words", "how_many", "len(words)", "return how many words there are", "give back the count of words"),
    _fold("words", "words", "words", "return the words", "give back the list of words"),
    _fold("words", "tally", "{w: words.count(w) for w in words}", "return a count of each word", "tally the words"),
)
TEXT = (
    _filter("text", "letters", "c.isalpha()", "keep only the letters of the text", "drop all but letters"),
    _filter("text", "consonants", 'c not in "aeiou"', "remove the vowels", "drop every vowel of the text"),
    _filter("text", "without", 'c != "{c}"', 'remove the letter "{c}"', 'drop every "{c}" of the text'),
    _replace("text", "lower_text", "text.lower()", "write the text in lower case", "make the text small letters"),
    _replace("text", "upper_text", "text.upper()", "write the text in upper case", "make the text capitals"),
    _replace("text", "mirror_text", "text[::-1]", "reverse the text", "turn the text around"),
    _replace("text", "star", 'text.replace("{c}", "*")', 'replace "{c}" by a star', 'put a star for every "{c}"'),
    _replace("text", "start_of_text", "text[:5]", "take the first five characters", "cut the text after five"),
    _convert("text", "words", "split", "text.split()", "split the text into words", "cut the text at spaces"),
    _fold("text", "length", "len(text)", "return the length of the text", "give back the number of characters"),
    _fold("text", "occurrences", 'text.count("{c}")', 'return how often "{c}" occurs', 'give back the count of "{c}"'),
    _fold("text", "palindrome", "text == text[::-1]", "return whether it is a palindrome", "tell if it mirrors"),
    _fold("text", "text", "text", "return the text", "give back the text"),
)
SCORES = (
    _items("high", "k", "v", " if v > {n}", "keep the scores above {n}", "select entries with a score over {n}"),
    _items("low", "k", "v", " if v < {n}", "keep the scores below {n}", "select entries with a score under {n}"),
    _items("even_scores", "k", "v", " if v % 2 == 0", "keep the even scores", "select entries with an even score"),
    _items("long_keys", "k", "v", " if len(k) > 4", "keep the long keys", "select keys over four letters"),
    _items("key_start", "k", "v", ' if k.startswith("{c}")', 'keep keys with "{c}" first', 'select those in "{c}"'),
    _items("raise", "k", "v + {n}", "", "add {n} to each score", "increase every score by {n}"),
    _items("scale", "k", "v * {n}", "", "multiply each score by {n}", "scale every score by {n}"),
    _items("upper_keys", "k.upper()", "v", "", "write each key in upper case", "put the keys in capitals"),
    _convert("scores", "numbers", "values", "list(scores.values())", "take the scores alone", "forget the keys"),
    _convert("scores", "words", "keys", "list(scores)", "take the keys alone", "forget the scores"),
    _fold("scores", "total", "sum(scores.values())", "return the sum of the scores", "give back the total score"),
    _fold("scores", "best", 'max(scores, key=scores.get, default="")', "return the best key", "give back the winner"),
    _fold("scores", "entries", "len(scores)", "return how many entries there are", "give back the count of entries"),
    _fold("scores", "scores", "scores", "return the dictionary", "give back the scores with their keys"),
)
_DIVISORS = "[d for d in range(1, number + 1) if number % d == 0]"
NUMBER = (
    _convert("number", "numbers", "digits", "[int(d) for d in str(number)]", "take its digits", "list the digits"),
    _convert("number", "numbers", "up_to", "list(range(1, number + 1))", "count from 1 to it", "list all from 1 to it"),
    _convert("number", "numbers", "divisors", _DIVISORS, "list its divisors", "find all divisors"),
    _replace("number", "double", "number * 2", "double the number", "take twice the number"),
    _replace("number", "plus", "number + {n}", "add {n} to the number", "increase the number by {n}"),
    _replace("number", "square_number", "number * number", "square the number", "multiply it by itself"),
    _replace("number", "half", "number // 2", "halve the number, rounding down", "divide it by two without remainder"),
    _fold("number", "is_even", "number % 2 == 0", "return whether it is even", "tell if two divides it"),
    _fold("number", "number", "number", "return the number", "give back the number"),
)
OPERATIONS: tuple[Operation, ...] = NUMBERS + WORDS + TEXT + SCORES + NUMBER
