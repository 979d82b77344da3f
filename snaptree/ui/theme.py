"""Light and dark: the colours of both, and what follows the system's choice."""

from __future__ import annotations

from dataclasses import dataclass
from string import Template

from PySide6.QtCore import QObject, Qt, Signal
from PySide6.QtGui import QColor, QPalette
from PySide6.QtWidgets import QApplication

from snaptree import resources
from snaptree.ui import icons
from snaptree.ui.settings import ThemeChoice


@dataclass(frozen=True, slots=True)
class Colours:
    """The colours of one theme. Text on `base` and `window` has a contrast of 4.5 at least, `faint` excepted."""

    window: QColor
    """Around the lists: panels, toolbars."""
    base: QColor
    """Behind lists and fields."""
    text: QColor
    dim: QColor
    """Second-rank text."""
    faint: QColor
    """Lines and bars that may be overlooked."""
    border: QColor
    accent: QColor
    on_accent: QColor
    selected: QColor
    """Behind selected rows of the view that has the focus."""
    selected_elsewhere: QColor
    """Behind selected rows of a view without the focus."""
    layer: QColor
    """Layers in a stack."""
    bar: QColor
    """Bars behind figures."""
    bar_selected: QColor
    """The same in selected rows."""
    good: QColor
    warning: QColor
    warning_ground: QColor
    error: QColor
    error_ground: QColor
    info_ground: QColor
    lanes: tuple[QColor, ...]
    """Lines of descent; neighbours differ in lightness, too."""

    def lane(self, number: int) -> QColor:
        """The colour of a lane."""
        return self.lanes[number % len(self.lanes)]


def _colours(*names: str) -> tuple[QColor, ...]:
    return tuple(QColor(name) for name in names)


LIGHT = Colours(
    window=QColor("#f4f5f7"),
    base=QColor("#ffffff"),
    text=QColor("#1d232b"),
    dim=QColor("#5c6773"),
    faint=QColor("#c3cad2"),
    border=QColor("#d9dde3"),
    accent=QColor("#1f5fbf"),
    on_accent=QColor("#ffffff"),
    selected=QColor("#d6e5fb"),
    selected_elsewhere=QColor("#e6e9ee"),
    layer=QColor("#e3e8ee"),
    bar=QColor("#dce8f9"),
    bar_selected=QColor("#b4cdf2"),
    good=QColor("#1a7a43"),
    warning=QColor("#8f5b00"),
    warning_ground=QColor("#fdf3dc"),
    error=QColor("#b42318"),
    error_ground=QColor("#fdebe9"),
    info_ground=QColor("#e8f0fc"),
    lanes=_colours("#1f5fbf", "#b8560b", "#1a7a43", "#8a3ea8", "#0b7a8c", "#b42361", "#6b6b00", "#5b4fc4"),
)

DARK = Colours(
    window=QColor("#1f2329"),
    base=QColor("#171a1f"),
    text=QColor("#e4e7eb"),
    dim=QColor("#9ba5b1"),
    faint=QColor("#4a535e"),
    border=QColor("#31373f"),
    accent=QColor("#6aa5f8"),
    on_accent=QColor("#0e1a2b"),
    selected=QColor("#24446f"),
    selected_elsewhere=QColor("#2b323b"),
    layer=QColor("#303944"),
    bar=QColor("#22354d"),
    bar_selected=QColor("#345e98"),
    good=QColor("#5bc489"),
    warning=QColor("#e7b14c"),
    warning_ground=QColor("#37301f"),
    error=QColor("#f58b81"),
    error_ground=QColor("#3d2624"),
    info_ground=QColor("#1f2f45"),
    lanes=_colours("#6aa5f8", "#eb9a55", "#5bc489", "#c68be0", "#4fbfd1", "#f07fb0", "#c9c357", "#a49bf5"),
)


def colours_of(palette: QPalette) -> Colours:
    """The theme that a widget's palette belongs to."""
    return DARK if palette.color(QPalette.ColorRole.Text).lightness() > 128 else LIGHT


class Theme(QObject):
    """Gives the application its palette and style sheet, again whenever the choice or the system changes."""

    changed = Signal()
    """The colours are others now; icons drawn before are stale."""

    def __init__(self, application: QApplication, choice: ThemeChoice) -> None:
        super().__init__(application)
        self._application = application
        self._choice = choice
        self._worn: Colours | None = None
        application.setStyle("fusion")
        application.styleHints().colorSchemeChanged.connect(self._system_changed)
        self.choose(choice)

    @property
    def choice(self) -> ThemeChoice:
        """What the user chose."""
        return self._choice

    def choose(self, choice: ThemeChoice) -> None:
        """Wear light, dark, or what the system wears."""
        self._choice = choice
        hints = self._application.styleHints()
        if hasattr(hints, "setColorScheme"):  # Qt 6.8: window frames and native dialogs follow, too
            hints.setColorScheme(
                {
                    ThemeChoice.SYSTEM: Qt.ColorScheme.Unknown,
                    ThemeChoice.LIGHT: Qt.ColorScheme.Light,
                    ThemeChoice.DARK: Qt.ColorScheme.Dark,
                }[choice]
            )
        self._wear()

    def _system_changed(self, _scheme: Qt.ColorScheme) -> None:
        self._wear()

    def _wear(self) -> None:
        match self._choice:
            case ThemeChoice.LIGHT:
                colours = LIGHT
            case ThemeChoice.DARK:
                colours = DARK
            case _:
                is_dark = self._application.styleHints().colorScheme() is Qt.ColorScheme.Dark
                colours = DARK if is_dark else LIGHT
        if colours is self._worn:
            return
        self._worn = colours
        icons.forget_all()
        self._application.setPalette(_palette(colours))
        self._application.setStyleSheet(_style_sheet(colours))
        self.changed.emit()


def _palette(colours: Colours) -> QPalette:
    palette = QPalette(colours.window)
    role = QPalette.ColorRole
    for colour_role, colour in {
        role.Window: colours.window,
        role.WindowText: colours.text,
        role.Base: colours.base,
        role.AlternateBase: colours.window,
        role.Text: colours.text,
        role.PlaceholderText: colours.dim,
        role.Button: colours.window,
        role.ButtonText: colours.text,
        role.ToolTipBase: colours.base,
        role.ToolTipText: colours.text,
        role.Highlight: colours.selected,
        role.HighlightedText: colours.text,
        role.Link: colours.accent,
        role.BrightText: colours.error,
        role.Mid: colours.border,
        role.Accent: colours.accent,
    }.items():
        palette.setColor(colour_role, colour)
    palette.setColor(QPalette.ColorGroup.Inactive, role.Highlight, colours.selected_elsewhere)
    for colour_role in (role.WindowText, role.Text, role.ButtonText):
        palette.setColor(QPalette.ColorGroup.Disabled, colour_role, colours.dim)
    return palette


def _style_sheet(colours: Colours) -> str:
    names = {name: value.name() for name in Colours.__slots__ if isinstance(value := getattr(colours, name), QColor)}
    names["tick"] = resources.path("icons/tick-dark.svg" if colours is DARK else "icons/tick-light.svg").as_posix()
    return Template(resources.path("style.qss").read_text(encoding="utf-8")).substitute(names)
