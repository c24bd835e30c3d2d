"""``memorysam recipes``: list, show and check recipes."""

from __future__ import annotations

from typing import Annotated

import typer

from memorysam_cli.commands.options import Json, Quiet, Set, Verbose, begin, example

SCHEMA_VERSION = 1

app = typer.Typer(help="List, show and check recipes.", epilog=example("memorysam recipes list"), no_args_is_help=True)

NameOrFile = Annotated[str, typer.Argument(metavar="NAME|FILE", help="A shipped recipe's name, or a .yaml file.")]


@app.command("list", epilog=example("memorysam recipes list --json"))
def list_recipes(json: Json = False, verbose: Verbose = False, quiet: Quiet = False) -> None:
    """List the recipes that come with memorysam."""
    from memorysam_cli import recipe
    from memorysam_cli.report import console

    begin(json=json, verbose=verbose, quiet=quiet)
    rows = [
        {
            "name": name,
            "dataset": each.data.dataset,
            "modalities": list(each.data.modalities),
            "backbone": each.model.backbone,
            "epochs": each.train.epochs,
            "about": each.about,
        }
        for name, each in ((name, recipe.load(name)) for name in recipe.shipped())
    ]
    if json:
        console.answer({"schema_version": SCHEMA_VERSION, "recipes": rows})
        return
    console.table(
        ["recipe", "data set", "modalities", "backbone", "epochs", "about"],
        [[", ".join(value) if isinstance(value, list) else value for value in row.values()] for row in rows],
    )


@app.command("show", epilog=example("memorysam recipes show deliver --set train.epochs=50 > mine.yaml"))
def show_recipe(
    name: NameOrFile, overrides: Set = None, json: Json = False, verbose: Verbose = False, quiet: Quiet = False
) -> None:
    """Print a recipe with every value, as YAML to edit and train."""
    from memorysam_cli import recipe
    from memorysam_cli.report import console

    begin(json=json, verbose=verbose, quiet=quiet)
    resolved = recipe.load(name, overrides or ())
    if json:
        console.answer({"schema_version": SCHEMA_VERSION, "recipe": resolved.model_dump(mode="json")})
    else:
        console.say(resolved.to_yaml().rstrip("\n"))


@app.command("check", epilog=example("memorysam recipes check mine.yaml --set optim.lr=1e-4"))
def check_recipe(
    name: NameOrFile, overrides: Set = None, json: Json = False, verbose: Verbose = False, quiet: Quiet = False
) -> None:
    """Check a recipe: 'ok', or exit code 2 and what is wrong with it."""
    from memorysam_cli import recipe
    from memorysam_cli.report import console

    begin(json=json, verbose=verbose, quiet=quiet)
    resolved = recipe.load(name, overrides or ())
    if json:
        console.answer({"schema_version": SCHEMA_VERSION, "name": resolved.name, "ok": True})
    else:
        console.say("ok")
