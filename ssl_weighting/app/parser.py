"""The parser of everything that trains or looks at a model: help that fits on some pages, mistakes in one line."""

from __future__ import annotations

from typing import Any, ClassVar, NoReturn

from lightning.pytorch.cli import LightningArgumentParser

from ssl_weighting.app.mistakes import Place, explained
from ssl_weighting.app.options import options_page
from ssl_weighting.errors import UserError


class Parser(LightningArgumentParser):
    """Says what is wrong in one line, with the nearest name that exists; takes no abbreviations.

    Attributes:
        of_class: The class whose arguments are parsed, for the parsers that are made for plug-ins.
    """

    _said: ClassVar[list[str]] = []
    _line: ClassVar[list[str]] = []
    of_class: type | None = None

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, allow_abbrev=False, **kwargs)

    def add_class_arguments(
        self, theclass: type, nested_key: str | None = None, *args: Any, **kwargs: Any
    ) -> Any:
        """Note the class of a plug-in; see jsonargparse."""
        if nested_key is None:
            self.of_class = theclass
        return super().add_class_arguments(theclass, nested_key, *args, **kwargs)

    def parse_args(self, args: Any = None, *others: Any, **kwargs: Any) -> Any:
        """Note the command line, which the parsers of plug-ins see a part of; see jsonargparse."""
        if self.of_class is None and args is not None:
            Parser._line = [str(word) for word in args]
            Parser._said = []
        return super().parse_args(args, *others, **kwargs)

    def error(self, message: str, ex: Exception | None = None) -> NoReturn:
        """Raise a UserError instead of printing the usage of hundreds of options.

        jsonargparse tries the types of an option in turn, so that what a plug-in's parser said comes back inside the
        message of the whole: it is nearer to the mistake.
        """
        for inner in reversed(self._said):
            if inner in message:
                raise UserError(inner) from ex
        parser = getattr(ex, "subcommand_parser", None) or self
        fault = explained(message, Place(list(parser._actions), self.of_class, self._line))
        if self.of_class is not None:
            self._said.append(fault)
        raise UserError(fault) from ex

    def format_help(self, formatter: Any = None) -> str:
        """All options on some pages; the help of a class as jsonargparse makes it."""
        if any(action.dest == "trainer.max_steps" for action in self._actions):
            return options_page(self)
        return super().format_help() if formatter is None else super().format_help(formatter)
