"""The bodies of the two routes, and what they ask for: texts in order, on what terms, and in which form the answers."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Annotated, Any, Literal, NoReturn, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError, WithJsonSchema

Text = str | tuple[str, str]
TEXT = {"type": "string", "minLength": 1}
PAIR = {"type": "array", "items": TEXT, "minItems": 1, "maxItems": 2}
SECOND = {"anyOf": [TEXT, {"type": "null"}]}
TWO = {
    "type": "object", "properties": {"text": TEXT, "text_pair": SECOND}, "required": ["text"],
    "additionalProperties": False,
}  # fmt: skip
PREDICTED = {"anyOf": [TEXT, PAIR, {"type": "array", "items": PAIR, "minItems": 1}]}
PARAMETERS = "parameters."  # where terms are in the body of `/`
INFERRED = {"anyOf": [TEXT, TWO, {"type": "array", "items": {"anyOf": [TEXT, TWO]}, "minItems": 1}]}


class Invalid(ValueError):
    """A body that cannot be answered.

    Args:
        field: which part of it, as in `inputs[2]`; empty: all of it.
        status: of the HTTP answer.
    """

    def __init__(self, message: str, field: str = "", status: int = 422) -> None:
        super().__init__(f"{field}: {message}" if field else message)
        self.field, self.status = field, status


class Terms(BaseModel):
    """What a request may ask for beside its texts; no other field is taken."""

    model_config = ConfigDict(extra="forbid", strict=True)

    exit_policy: str | dict[str, Any] | None = Field(
        default=None, description="an operating point's name, `default`, `full-depth`, or fields of a policy"
    )
    latency_budget_ms: float | None = Field(
        default=None, gt=0, le=1e6, description="the most careful certified point that will probably keep it is taken"
    )
    differ: float | None = Field(
        default=None,
        ge=0,
        le=1,
        description="of the answers, at most this share may differ from full depth's, as certified",
    )
    details: bool | None = Field(default=False, description="every label with its exit_layer and exit_policy")


class Predict(Terms):
    """`POST /predict`, as text-embeddings-inference has it."""

    inputs: Annotated[Any, WithJsonSchema(PREDICTED)] = Field(
        description="a text, a pair of two, or a batch: a list of lists of one or two"
    )
    raw_scores: bool | None = Field(default=False, description="logits instead of probabilities")
    truncate: bool | None = Field(default=False, description="cut texts that are too long instead of refusing them")
    truncation_direction: Literal["right", "Right"] | None = Field(default="right", description="texts lose their end")


class Parameters(Terms):
    """How the answers of `POST /` are made."""

    function_to_apply: Literal["softmax", "sigmoid", "none"] | None = None
    top_k: int | None = Field(default=None, ge=1, description="labels of each text; null: all")
    truncation: bool | None = Field(default=True, description="cut texts that are too long; false: refuse them")


class Options(BaseModel):
    """Of the Hub's own servers; this one is ready when it answers, and caches nothing."""

    model_config = ConfigDict(extra="forbid", strict=True)

    use_cache: bool | None = True
    wait_for_model: bool | None = False


class Inference(BaseModel):
    """`POST /`, the Hub's inference format."""

    model_config = ConfigDict(extra="forbid", strict=True)

    inputs: Annotated[Any, WithJsonSchema(INFERRED)] = Field(
        description="a text, two as {text, text_pair}, or a list of these: a batch"
    )
    parameters: Parameters | None = None
    options: Options | None = None


class Folder(BaseModel):
    """Where an adapter lies: a path below the folder that the server loads models from."""

    model_config = ConfigDict(extra="forbid", strict=True)

    folder: str


@dataclass(frozen=True)
class Asked:
    """What a body asks for.

    Args:
        texts: in order.
        single: whether the answer is of one text, not a list of answers.
        truncate: whether texts that are too long are cut.
        function: makes scores of logits; None: as the model has it.
        top_k: labels of each text; None: all.
        terms: the policy, or what is to choose one.
        where: the part of the body that the terms are in, with its dot.
        listed: whether the texts came in a list.
    """

    texts: list[Text]
    single: bool
    truncate: bool
    function: str | None
    top_k: int | None
    terms: Terms
    where: str = ""
    listed: bool = False

    def field(self, number: int) -> str:
        """Where a text is in the body."""
        return f"inputs[{number}]" if self.listed else "inputs"


def as_predict(body: bytes) -> Asked:
    """A body of `/predict`: a list of one or two texts is one input, a batch a list of such lists."""
    asked = parsed(Predict, body)
    given = asked.inputs
    function = "none" if asked.raw_scores else None
    single = isinstance(given, str) or isinstance(given, list) and bool(given) and isinstance(given[0], str)
    texts = [sequence(given, "inputs")] if single else each(given, sequence)
    return Asked(texts, single, bool(asked.truncate), function, None, checked(asked), listed=not single)


def as_inference(body: bytes) -> Asked:
    """A body of `/`: a list is a batch. Clients expect a list of answers of one text as well."""
    asked = parsed(Inference, body)
    given, how = asked.inputs, asked.parameters or Parameters()
    texts = each(given, text_or_two) if isinstance(given, list) else [text_or_two(given, "inputs")]
    terms, truncate, where = checked(how, PARAMETERS), how.truncation is not False, PARAMETERS
    return Asked(texts, False, truncate, how.function_to_apply, how.top_k, terms, where, isinstance(given, list))


def checked(terms: Terms, where: str = "") -> Terms:
    """Terms that do not contradict each other."""
    if terms.exit_policy is not None and (terms.latency_budget_ms is not None or terms.differ is not None):
        raise Invalid("must be left out with latency_budget_ms or differ, which choose one", f"{where}exit_policy")
    return terms


# ---- texts -----------------------------------------------------------------------------------------------------------


def each(given: Any, one: Callable[[Any, str], Text]) -> list[Text]:
    """A batch."""
    if not isinstance(given, list) or not given:
        raise Invalid("must be a text, or a list with at least one", "inputs")
    return [one(item, f"inputs[{number}]") for number, item in enumerate(given)]


def sequence(given: Any, field: str) -> Text:
    """A text, or a list of one or two."""
    if isinstance(given, str):
        return text(given, field) if field == "inputs" else bad(field)
    if not isinstance(given, list) or len(given) not in (1, 2):
        bad(field)
    found = tuple(text(item, f"{field}[{number}]") for number, item in enumerate(given))
    return found if len(found) == 2 else found[0]


def text_or_two(given: Any, field: str) -> Text:
    """A text, or two as an object."""
    if not isinstance(given, dict):
        return text(given, field)
    if unknown := given.keys() - {"text", "text_pair"}:
        raise Invalid(f"must be an object with text and text_pair, without {sorted(unknown)[0][:40]!r}", field)
    first = text(given.get("text"), f"{field}.text")
    return first if given.get("text_pair") is None else (first, text(given["text_pair"], f"{field}.text_pair"))


def text(given: Any, field: str) -> str:
    """A string with something in it."""
    if not isinstance(given, str) or not given:
        raise Invalid("must be a text that is not empty", field)
    return given


def bad(field: str) -> NoReturn:
    """Refuse what is neither a text nor a pair."""
    raise Invalid("must be a list of one or two texts", field)


# ---- JSON ------------------------------------------------------------------------------------------------------------

Body = TypeVar("Body", bound=BaseModel)


def parsed(kind: type[Body], body: bytes) -> Body:
    """A body as its kind; what is wrong with it is said without what it holds."""
    try:
        return kind.model_validate_json(body)
    except ValidationError as error:
        first = error.errors(include_url=False, include_context=False, include_input=False)[0]
    if first["type"] == "json_invalid":
        raise Invalid(first["msg"], status=400)
    raise Invalid(first["msg"], in_words(first["loc"]))


def in_words(place: tuple[int | str, ...]) -> str:
    """Where in a body, as in `parameters.top_k`; without the branch of a union that pydantic adds."""
    words = "".join(f"[{part}]" if isinstance(part, int) else f".{part[:40]}" for part in place if part not in UNIONS)
    return words.removeprefix(".")


UNIONS = ("str", "dict[str,any]")


# ---- in the OpenAPI document -----------------------------------------------------------------------------------------


def taking(body: type[BaseModel]) -> dict[str, Any]:
    """A body as a route documents it, where the route reads it itself."""
    schema = body.model_json_schema()
    schema = inlined(schema, schema.pop("$defs", {}))
    return {"requestBody": {"required": True, "content": {"application/json": {"schema": schema}}}}


def inlined(schema: Any, known: dict[str, Any]) -> Any:
    """A schema with what it refers to in its place."""
    if isinstance(schema, list):
        return [inlined(part, known) for part in schema]
    if not isinstance(schema, dict):
        return schema
    if "$ref" in schema:
        return inlined(known[schema["$ref"].rpartition("/")[2]], known)
    return {name: inlined(part, known) for name, part in schema.items()}
