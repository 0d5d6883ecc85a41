"""Types that every section of params.yaml shares: numbers, names, addresses, and the error that a user can mend."""

from typing import Annotated, Any, Literal
from urllib.parse import urlsplit

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, StringConstraints


def _parsed(url: str) -> str:
    try:
        _ = urlsplit(url).port
    except ValueError as error:
        raise ValueError(f"no address: {error}") from None
    return url


Key = Annotated[str, StringConstraints(pattern=r"^[a-z0-9]+(-[a-z0-9]+)*$")]
LONGEST = 4000  # letters of a refusal
Line = Annotated[str, StringConstraints(pattern=r"^[^\x00-\x1f\x7f-\x9f\u2028\u2029]*$")]  # one line of text, nothing that controls
Place = Annotated[str, StringConstraints(pattern=r"^(pretrain|finetune|sample)(\.[a-z_]+)+$")]  # of a number behind an evaluation
Count = Annotated[int, Field(ge=1, lt=2**63)]
Url = Annotated[str, StringConstraints(pattern=r"^(https|file)://[!-~]+$"), AfterValidator(_parsed)]
Sha = Annotated[str, StringConstraints(pattern=r"^[0-9a-f]{64}$")]
Seed = Annotated[int, Field(ge=-(2**63), lt=2**63)]
Positive = Annotated[float, Field(gt=0)]
Fraction = Annotated[float, Field(ge=0, lt=1)]
Family = Literal["mobilenet-v2", "inception-2015", "dinov2"]  # the network whose features are compared
Precision = Literal["auto", "fp32", "tf32", "bf16", "fp16"]  # auto: what the device is fastest in, settled when work begins


def new(neutral: Any) -> Any:
    """The default of a field that has come since 0.1.0: neutral, and then neither recorded nor hashed.

    So what was made before the field came stays current, and a training that was begun then goes on.
    """
    return Field(default=neutral, exclude_if=lambda value: value == neutral)


class UserError(Exception):
    """A mistake that the user can mend: one line that names the file or key and says what to do.

    What it quotes may be a stranger's: nothing in it moves a terminal's cursor, and it ends somewhere.
    """

    def __init__(self, line: str) -> None:
        super().__init__("".join(letter if letter.isprintable() else ascii(letter)[1:-1] for letter in line[:LONGEST]))


class Section(BaseModel):
    """One entry of params.yaml: frozen, unknown keys and wrong types are errors."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, allow_inf_nan=False)
    revision: Count = 1  # raised by hand when a change of code changes this step's results

    def accepts(self, made: "Section") -> bool:
        """Whether what was made with an entry is what this one asks for: the same numbers; precision auto takes any precision."""
        if getattr(self, "precision", None) == "auto":
            made = made.model_copy(update={"precision": "auto"})
        return self == made
