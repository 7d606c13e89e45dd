"""Draw which folder imports which, for ARCHITECTURE.md: `python scripts/draw_imports.py`.

An arrow stands for an import; those that follow from others are left out.
"""

import grimp

INSIDE = ("pipeline", "features", "jobs")
"""Packages that are drawn folder by folder; any other is one box."""


def folder_imports() -> set[tuple[str, str]]:
    """Pairs (importer, imported) of folders, without those that follow from others."""
    graph = grimp.build_graph("skipreel", cache_dir=None)

    def folder_of(module: str) -> str | None:
        """``skipreel.pipeline.video.live.stream`` -> ``pipeline/video``; None for modules in no folder."""
        package, *rest = module.split(".")[1:3] or [""]
        if package not in INSIDE:
            return package or None
        is_folder = bool(rest) and bool(graph.find_children(f"skipreel.{package}.{rest[0]}"))
        return f"{package}/{rest[0]}" if is_folder else None

    pairs = {
        (importer, imported)
        for module in graph.modules
        for other in graph.find_modules_directly_imported_by(module)
        if (importer := folder_of(module)) and (imported := folder_of(other)) and importer != imported
    }
    return {pair for pair in pairs if not _follows(pair, pairs - {pair})}


def _follows(pair: tuple[str, str], pairs: set[tuple[str, str]]) -> bool:
    reached, new = {pair[0]}, {pair[0]}
    while new:
        new = {imported for importer, imported in pairs if importer in new} - reached
        reached |= new
    return pair[1] in reached


def drawing() -> str:
    """The Mermaid source."""
    return "\n".join(["graph TD", *(f"  {a} --> {b}" for a, b in sorted(folder_imports()))])


if __name__ == "__main__":
    print(drawing())
