"""Class names with their group and emoji: the one table that every screen, report and reply reads.

Rows are in the order of the datasets' own numeric targets (ESC-50 `target`, UrbanSound8K `classID`).
"""

from __future__ import annotations

from dataclasses import dataclass

_SPEAKER = "🔊"

ANIMALS = "Animals"
NATURE = "Natural soundscapes & water sounds"
HUMAN = "Human, non-speech sounds"
INTERIOR = "Interior/domestic sounds"
EXTERIOR = "Exterior/urban noises"
URBAN = "Urban sounds"


@dataclass(frozen=True)
class Label:
    """A class as people see it."""

    name: str
    emoji: str
    group: str


def _table(group: str, rows: str) -> tuple[Label, ...]:
    words = iter(rows.split())
    return tuple(Label(name=name, emoji=emoji, group=group) for name, emoji in zip(words, words, strict=True))


ESC50: tuple[Label, ...] = (
    *_table(
        ANIMALS,
        """
        dog 🐕  rooster 🐓  pig 🐖  cow 🐄  frog 🐸  cat 🐈  hen 🐔  insects 🪰  sheep 🐑  crow 🐦‍⬛
        """,
    ),
    *_table(
        NATURE,
        """
        rain 🌧️  sea_waves 🌊  crackling_fire 🔥  crickets 🦗  chirping_birds 🐦  water_drops 💧
        wind 🌬️  pouring_water 🫗  toilet_flush 🚽  thunderstorm ⛈️
        """,
    ),
    *_table(
        HUMAN,
        """
        crying_baby 👶  sneezing 🤧  clapping 👏  breathing 😮‍💨  coughing 😷  footsteps 👣
        laughing 😂  brushing_teeth 🪥  snoring 😴  drinking_sipping 🥤
        """,
    ),
    *_table(
        INTERIOR,
        """
        door_wood_knock 🚪  mouse_click 🖱️  keyboard_typing ⌨️  door_wood_creaks 🏚️
        can_opening 🥫  washing_machine 🧺  vacuum_cleaner 🧹  clock_alarm ⏰  clock_tick 🕰️
        glass_breaking 🍷
        """,
    ),
    *_table(
        EXTERIOR,
        """
        helicopter 🚁  chainsaw 🪚  siren 🚨  car_horn 📯  engine 🏎️  train 🚆  church_bells 🔔
        airplane ✈️  fireworks 🎆  hand_saw 🪵
        """,
    ),
)

URBANSOUND8K: tuple[Label, ...] = _table(
    URBAN,
    """
    air_conditioner ❄️  car_horn 📯  children_playing 🧒  dog_bark 🐕  drilling 🛠️
    engine_idling 🚗  gun_shot 💥  jackhammer 🚧  siren 🚨  street_music 🎶
    """,
)

_BY_NAME: dict[str, Label] = {label.name: label for label in (*URBANSOUND8K, *ESC50)}


def describe(name: str) -> Label:
    """The label of a class name; a name of a user's own set gets a speaker and its own group."""
    return _BY_NAME.get(name, Label(name=name, emoji=_SPEAKER, group="Other"))
