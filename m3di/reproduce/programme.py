"""What a programme of experiments is made of: declarations, small and fixed, from which cells are derived."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Final, Literal, TypeVar

Kind = Literal["segmentation", "classification"]
Shape = Literal["methods", "arms", "curves", "pictures"]

SCRATCH: Final = "scratch"
MAIN: Final = "main"


@dataclass(frozen=True)
class Target:
    """A downstream task on a dataset.

    Attributes:
        name: Its name in cells and rows.
        title: Its name for people.
        dataset: Name of the dataset.
        task: Name of m3di's task.
        kind: What is predicted.
        store: Name of the store that its encoders are pretrained on.
        columns: Heading of each structure by its class name, in the order of a table; empty for classification.
        published: Name of its column in the paper's tables; empty when the paper has none.
        settings: Settings of its fine-tuning.
    """

    name: str
    title: str
    dataset: str
    task: str
    kind: Kind
    store: str
    columns: Mapping[str, str] = field(default_factory=dict)
    published: str = ""
    settings: tuple[str, ...] = ()


@dataclass(frozen=True)
class Network:
    """A network of a programme.

    Attributes:
        name: As `finetune --network` names it.
        title: As the paper's tables name it.
        encoder: Name of its encoder; empty when nothing is pretrained for it. Networks of one encoder share what was
            pretrained, and so its sizes.
        settings: Sizes of its encoder, for pretraining and fine-tuning alike.
        decoder: Sizes of the rest, for fine-tuning.
    """

    name: str
    title: str
    encoder: str = ""
    settings: tuple[str, ...] = ()
    decoder: tuple[str, ...] = ()


@dataclass(frozen=True)
class Stock:
    """A feature store of a programme.

    Attributes:
        name: Its name in cells.
        datasets: What it is built from; those that are not there are left out.
        settings: Settings of its build.
    """

    name: str
    datasets: tuple[str, ...]
    settings: tuple[str, ...] = ()


@dataclass(frozen=True)
class Arm:
    """A way to begin fine-tuning: from scratch, or from an encoder pretrained in some way.

    Attributes:
        name: Its name in cells.
        title: Its name for people.
        settings: Settings of the pretraining.
        stock_settings: Settings of the store that is built for it; empty to use the common one.
        preset: Preset of the pretraining, in place of the programme's own settings.
        same_as: Name of the arm whose cells it shares, as it says the same in other words; empty for its own.
    """

    name: str
    title: str
    settings: tuple[str, ...] = ()
    stock_settings: tuple[str, ...] = ()
    preset: str = ""
    same_as: str = ""


@dataclass(frozen=True)
class Comparison:
    """Fine-tunings that differ in how they begin, and in their seed, alone.

    Attributes:
        target: Name of the target.
        network: Name of the network.
        label_fraction: Share of the training subjects whose labels are used.
        seeds: Seeds of pretraining and fine-tuning.
        arms: Names of the arms, `scratch` first where it is one.
        probe: Whether the encoder stays frozen.
    """

    target: str
    network: str
    label_fraction: float
    seeds: tuple[int, ...]
    arms: tuple[str, ...] = (SCRATCH, MAIN)
    probe: bool = False


@dataclass(frozen=True)
class Table:
    """A table or figure.

    Attributes:
        name: As the command line names it.
        title: What it shows.
        shape: `methods` are tables 1 and 2 of the paper, `arms` table 3, `curves` figure 3, `pictures` figure 2.
        comparisons: Its rows.
    """

    name: str
    title: str
    shape: Shape
    comparisons: tuple[Comparison, ...]


@dataclass(frozen=True)
class Programme:
    """All experiments of a scale.

    Attributes:
        name: Name of the scale.
        preset: Preset of every command.
        pretraining: Settings of every pretraining that names no preset of its own.
        probe: Settings of every linear probe.
        targets: By name.
        networks: By name.
        stocks: By name.
        arms: By name, `scratch` left out.
        tables: By name.
    """

    name: str
    preset: str
    pretraining: tuple[str, ...]
    probe: tuple[str, ...]
    targets: Mapping[str, Target]
    networks: Mapping[str, Network]
    stocks: Mapping[str, Stock]
    arms: Mapping[str, Arm]
    tables: Mapping[str, Table]

    def datasets_of(self, tables: Iterable[Table]) -> list[str]:
        """Names of the datasets that are labelled in some tables, then of those that are pretrained on."""
        targets = [self.targets[one.target] for table in tables for one in table.comparisons]
        labelled = [target.dataset for target in targets]
        stocks = [self.stocks[target.store] for target in targets]
        return list(dict.fromkeys([*labelled, *(name for stock in stocks for name in stock.datasets)]))


Declared = TypeVar("Declared", Target, Network, Stock, Arm, Table)


def named(*ones: Declared) -> dict[str, Declared]:
    """Declarations by their names."""
    return {one.name: one for one in ones}
