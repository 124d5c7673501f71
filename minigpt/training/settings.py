"""Settings of train.py: which values are possible, and which come from the run that it starts from.

Only the configurator reads recipes and flags; these functions get its Settings.
"""

import operator

from minigpt.common.errors import UserError
from minigpt.common.types import typed

# What resuming fixes besides the model and the tokenizer: what the data order, the parameters that
# move and the objective depend on.
FIXED = ["dataset", "seed", "shuffle", "batch_size", "gradient_accumulation_steps", "optimizer"]
FIXED += ["val_dataset", "isolate", "freeze_layers", "freeze_embeddings"]
FIXED += ["lora_rank", "lora_alpha", "lora_dropout", "lora_targets"]
FIXED += ["stage", "dpo_beta", "guard_dataset", "teacher"]
FIXED += ["reward", "grpo_group", "grpo_tokens", "grpo_steps", "grpo_beta"]

# Settings of older runs. RENAMED: old name → (name, its value from the old one). REMOVED: name →
# the one value that changes nothing.
RENAMED = {"if_trav": ("shuffle", operator.not_)}
RENAMED |= {f"dpo_{name}": (name, None) for name in ("guard_dataset", "max_forgetting")}
REMOVED = {"dpo_average": False, "dpo_label_smoothing": 0.0}

AT_LEAST = {
    1: "batch_size gradient_accumulation_steps eval_interval eval_iters log_interval n_layer "
    "n_head n_embd grpo_tokens grpo_steps",
    0: "max_iters seed learning_rate embedding_lr_ratio warmup_iters weight_decay grad_clip "
    "freeze_layers lora_rank patience sample_tokens norm_eps grpo_beta",
    2: "block_size grpo_group",
}
BELOW_ONE = "dropout lora_dropout beta1 beta2 muon_momentum grpo_clip"
SHARES = "min_lr_ratio decay_fraction distill_text"
POSITIVE = (
    "epochs max_minutes budget_minutes save_minutes rope_theta lora_alpha dpo_beta grpo_clip_high"
)
# Settings of one stage: how their names begin → the stage.
OF_STAGE = {"dpo_": "dpo", "grpo_": "grpo", "reward": "grpo", "judge_": "grpo"}
OF_STAGE |= {"teacher": "distill", "distill_": "distill"}


# -- ranges ----------------------------------------------------------------------------------------


def check_ranges(settings):
    """UserError names all values that no run can have, a line each."""
    values = settings.as_dict()
    rules = [(name, 0 <= values[name] < 1, "0 to below 1") for name in BELOW_ONE.split()]
    rules += [(name, 0 <= values[name] <= 1, "0 to 1") for name in SHARES.split()]
    rules += [
        (name, values[name] is None or values[name] > 0, "more than 0") for name in POSITIVE.split()
    ]
    rules.append(("seed", settings.seed < 2**63, "below 2**63"))
    limit = settings.max_forgetting
    rules.append(("max_forgetting", limit is None or limit > 1, "more than 1, or none"))
    rules += _rules_between_settings(settings)
    least = {name: bound for bound, names in AT_LEAST.items() for name in names.split()}
    problems = settings.below(**least) + [
        f"{settings.origin(name)}: {name}={values[name]}: expected {expected}"
        for name, is_good, expected in rules
        if not is_good
    ]
    if problems:
        raise UserError("\n".join(problems))


def _rules_between_settings(settings):
    """Rules (name, is_good, expected) for settings that need others."""
    stage = settings.stage
    a_run = f"the folder of a run that answers already: stage={stage} starts from it"
    starts = stage in ("dpo", "grpo")
    rules = [("init_from", not starts or settings.init_from != "scratch", a_run)]
    is_planned = settings.budget_minutes is not None
    is_planned &= not settings.origin("budget_minutes").startswith("resumed")
    fits = settings.init_from == "scratch" and stage == "lm"
    expected = "none where the shape comes with init_from, and for other stages; --max_minutes=…"
    rules.append(("budget_minutes", fits or not is_planned, expected))
    its_rates = "muon with budget_minutes, whose rates were measured with it"
    rules.append(("optimizer", settings.optimizer == "muon" or not is_planned, its_rates))
    whole = "ddp with stage=grpo: each process writes answers with the whole model"
    rules.append(("parallel", stage != "grpo" or settings.parallel != "fsdp", whole))
    if settings.init_from == "resume":  # the other settings come with the run
        return rules
    rules += _shape_rules(settings)
    a_reward = "what stage=grpo rewards, such as exact, or FILE.py"
    rules.append(("reward", stage != "grpo" or settings.reward.strip() != "", a_reward))
    a_teacher = "the folder of the run from which stage=distill learns"
    rules.append(("teacher", stage != "distill" or settings.teacher is not None, a_teacher))
    given = [name for name in settings.as_dict() if settings.origin(name) != "default"]
    rules += [
        (name, stage == wanted, f"--stage={wanted} with it")
        for name in given
        for beginning, wanted in OF_STAGE.items()
        if name.startswith(beginning)
    ]
    if "lora_rank" not in given:
        needs_rank = ("lora_alpha", "lora_dropout", "lora_targets")
        rules += [
            (name, False, "--lora_rank=8 or so with it") for name in given if name in needs_rank
        ]
    return rules


def _shape_rules(settings):
    """The rules for the heads of a new model, checked here so that a mistake is found at once."""
    if settings.init_from != "scratch":
        return []
    heads, groups = settings.n_head, settings.n_kv_head
    divides = groups is None or (groups > 0 and heads % groups == 0)
    rules = [("n_kv_head", divides, f"a divisor of n_head={heads}")]
    is_rope = settings.position == "rope"
    if settings.head_dim is not None:
        is_even = settings.head_dim > 0 and (not is_rope or settings.head_dim % 2 == 0)
        return [*rules, ("head_dim", is_even, "an even number: RoPE rotates pairs")]
    unit = max(1, heads) * (2 if is_rope else 1)
    name = "n_head" if settings.origin("n_embd") == "default" else "n_embd"
    reason = f"2 · n_head={unit}, for RoPE rotates pairs" if is_rope else f"n_head={unit}"
    expected = f"n_embd={settings.n_embd} to be a multiple of {reason}, with n_head={heads}"
    return [*rules, (name, settings.n_embd % unit == 0, f"{expected}; or give head_dim")]


# -- from a checkpoint -----------------------------------------------------------------------------


def inherit_settings(settings, parent, resumed=False):
    """Take over what a Checkpoint fixes: the model's shape and the tokenizer; when its run is
    resumed, also FIXED. UserError names every value given by hand that contradicts it.

    A resumed run takes all other settings from the checkpoint too, unless they are given by hand.
    """
    saved = {**saved_settings(settings, parent), **parent.meta["model"]}
    fixed = [name for name in parent.meta["model"] if name != "dropout"] + ["tokenizer"]
    fixed += FIXED if resumed else []
    # none means that the shape determines the value: that contradicts nothing.
    for name in ("n_kv_head", "head_dim", "n_hidden"):
        if name in saved and getattr(settings, name) is None:
            settings.set(name, saved[name], str(parent.folder))
    settings.inherit({name: saved[name] for name in fixed if name in saved}, str(parent.folder))
    if not resumed:
        return
    now = settings.as_dict()
    for name, value in saved_settings(settings, parent).items():
        if name in now and settings.origin(name) == "default" and value != now[name]:
            settings.set(name, value, f"resumed from {parent.folder}")
    settings.set("init_from", "resume", "--init_from")


def saved_settings(settings, parent):
    """The settings in a Checkpoint's config.json, by their present names. UserError for values of
    another type, and where the run used a setting that no longer exists."""
    present = present_settings(parent.meta["settings"], parent.folder)
    values, problems = typed(present, settings.types(), f"{parent.folder}/config.json: settings")
    if problems:
        raise UserError("\n".join(problems))
    return values


def present_settings(saved, source):
    """Settings that any version saved (name → value), by their present names. UserError, with
    `source`, for the value of a removed setting that changed the training."""
    present, problems = {}, []
    for name, value in saved.items():
        if name in REMOVED:
            if value != REMOVED[name]:
                problems.append(
                    f"{source}: {name}={value} no longer exists; use the version of MiniGPT that "
                    f"made it"
                )
            continue
        name, convert = RENAMED.get(name, (name, None))
        present[name] = convert(value) if convert else value
    if problems:
        raise UserError("\n".join(problems))
    return present


def keep_step_size(settings, before, world_size):
    """Keep the batches of a step the same when a run of `before` processes continues on
    `world_size`: each accumulates more of them, or fewer. UserError where they cannot be divided.
    """
    batches = settings.gradient_accumulation_steps * before
    if batches % world_size:
        fit = [str(n) for n in range(1, batches + 1) if batches % n == 0]
        raise UserError(
            f"{settings.out_dir}: a step of this run takes {batches} batches, which {world_size} "
            f"processes cannot share; take {' or '.join(fit)}"
        )
    if world_size != before:
        origin = f"{before} processes before, {world_size} now"
        settings.set("gradient_accumulation_steps", batches // world_size, origin)


def prefer_max_iters(settings):
    """A max_iters given as a flag replaces the epochs of a recipe or of a checkpoint."""
    by_flag = {name: settings.origin(name) == f"--{name}" for name in ("max_iters", "epochs")}
    if settings.epochs is not None and by_flag["max_iters"] and not by_flag["epochs"]:
        settings.set("epochs", None, "--max_iters")
