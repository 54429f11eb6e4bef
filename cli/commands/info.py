"""`m3di info`."""

from cli.options import Common, HtmlOption, StoreOption, store_path
from cli.output import facts_table, table


def info(common: Common, store: StoreOption = None, html: HtmlOption = None) -> None:
    """Show what is in a store: volumes, rows, bytes, recipe, teacher, captioner, quarantine."""
    from m3di.inspect import describe_store

    facts = describe_store(store_path(store))
    if html:
        from m3di.report.pages.store import store_page
        from m3di.report.write import write_page

        write_page(store_page(facts), html)
    summary = {name: value for name, value in facts.items() if not isinstance(value, dict | list)}
    recipe = facts_table({f"recipe: {name}": value for name, value in facts["recipe"].items()})
    shown: list[object] = [facts_table(summary), recipe]
    if facts["quarantine"]:
        rows = [(row["case"], row["code"], row["message"]) for row in facts["quarantine"]]
        shown.append(table(("quarantined", "code", "why"), rows))
    common.output.result("info", facts, *shown)
