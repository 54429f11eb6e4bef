"""The commands, one file each, and the table that names them with an example."""

from collections.abc import Callable

from cli.commands import captions, teacher
from cli.commands.build_store import build_store
from cli.commands.demo import demo
from cli.commands.diff import diff
from cli.commands.doctor import doctor
from cli.commands.evaluate import evaluate
from cli.commands.export import export
from cli.commands.finetune import finetune
from cli.commands.gc import gc
from cli.commands.info import info
from cli.commands.merge import merge
from cli.commands.predict import predict
from cli.commands.pretrain import pretrain
from cli.commands.query import query
from cli.commands.remove import remove
from cli.commands.reproduce import reproduce
from cli.commands.verify import verify

TABLE: dict[str, tuple[Callable[..., None], str]] = {
    "build-store": (build_store, "m3di build-store scans/ --store store"),
    "info": (info, "m3di info --store store"),
    "verify": (verify, "m3di verify --store store --quick"),
    "merge": (merge, "m3di merge shard-1 shard-2 --store store"),
    "diff": (diff, "m3di diff other-store --store store"),
    "gc": (gc, "m3di gc --store store --dry-run"),
    "remove": (remove, "m3di remove --store store --subject patient-7 --dry-run"),
    "pretrain": (pretrain, "m3di pretrain --store store --run runs/first --encoder vit"),
    "finetune": (finetune, "m3di finetune --task msd --data Task04_Hippocampus --init runs/first"),
    "predict": (predict, "m3di predict scan.nii.gz --run runs/first-msd --out masks"),
    "evaluate": (evaluate, "m3di evaluate --run runs/first-msd"),
    "export": (export, "m3di export --run runs/first --to hub --out first-hub"),
    "query": (query, 'm3di query "slice through the liver" --top 5'),
    "reproduce": (reproduce, "m3di reproduce table1 --scale small --data datasets --out results --workers 2"),
    "demo": (demo, "m3di demo --out m3di-demo"),
    "doctor": (doctor, "m3di doctor"),
}

GROUPS: dict[str, tuple[str, dict[str, tuple[Callable[..., None], str]]]] = {
    "captions": ("Plan, write, import, export and check captions.", captions.TABLE),
    "teacher": ("Look at, fit, pack and check frozen 2D vision-language models.", teacher.TABLE),
}
