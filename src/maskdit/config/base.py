"""Types shared by all sections of params.yaml: numbers, names, URLs, and the error shown to the user."""

from typing import Annotated, Any, Literal, TypeVar
from urllib.parse import urlsplit

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, StringConstraints


def _parsed(url: str) -> str:
    _ = urlsplit(url).port  # raises ValueError for a malformed host or port
    return url


T = TypeVar("T")
ListOf = Annotated[tuple[T, ...], Field(strict=False)]  # a YAML list, stored as a tuple
Interval = Annotated[tuple[float, float], Field(strict=False)]
Key = Annotated[str, StringConstraints(pattern=r"^[a-z0-9]+(-[a-z0-9]+)*$")]
LONGEST = 4000  # maximum length of an error message, in characters
Line = Annotated[str, StringConstraints(pattern=r"^[^\x00-\x1f\x7f-\x9f\u2028\u2029]*$")]  # one line without control characters
Place = Annotated[
    str, StringConstraints(pattern=r"^(pretrain|finetune|sample)(\.[a-z_]+)+$")
]  # path of a number behind an evaluation
Count = Annotated[int, Field(ge=1, lt=2**63)]
Natural = Annotated[int, Field(ge=0)]
Url = Annotated[str, StringConstraints(pattern=r"^(https|file)://[!-~]+$"), AfterValidator(_parsed)]
Sha = Annotated[str, StringConstraints(pattern=r"^[0-9a-f]{64}$")]
Seed = Annotated[int, Field(ge=-(2**63), lt=2**63)]
Positive = Annotated[float, Field(gt=0)]
Fraction = Annotated[float, Field(ge=0, lt=1)]
Family = Literal["mobilenet-v2", "inception-2015", "dinov2"]  # the network whose features are compared
Precision = Literal["auto", "fp32", "tf32", "bf16", "fp16"]  # auto: the fastest on the device, resolved when a step starts


def new(neutral: Any) -> Any:
    """The default of a field added since 0.1.0: neither recorded nor hashed, so that existing artifacts stay current."""
    return Field(default=neutral, exclude_if=lambda value: value == neutral)


def printable(line: str) -> str:
    """A line in which control characters, and bytes of a file's name that are no text, are escaped."""
    return "".join(letter if letter.isprintable() else ascii(letter)[1:-1] for letter in line)


class UserError(Exception):
    """A mistake the user can fix: one line that names the file or key and says what to do. Quoted text is made printable."""

    def __init__(self, line: str) -> None:
        super().__init__(printable(line[:LONGEST]))


class Section(BaseModel):
    """One entry of params.yaml. It is frozen; unknown keys and wrong types are errors."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, allow_inf_nan=False)
    revision: Count = 1  # raise by hand when a code change alters the results of this step

    def accepts(self, made: "Section") -> bool:
        """Whether an artifact made with the entry `made` is current for this one. `precision: auto` accepts any precision."""
        if getattr(self, "precision", None) == "auto":
            made = made.model_copy(update={"precision": "auto"})
        return self == made
