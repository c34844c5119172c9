"""Experiments: a manifest lists every figure and table, each made by a notebook that runs in a folder of its own.

The name of that folder is a hash of the notebook's source, its parameters, the modules of the core that it imports, the
checkpoints, the data and the torch version. An unchanged run is therefore found and not repeated, a changed one is not
taken for it, and a killed one leaves nothing that looks finished: a run gets its name only when it is complete.

A notebook's part of the contract: a cell tagged ``parameters`` that declares ``profile``, ``seed``, ``out_dir`` and
``cache_dir`` beside its own parameters; written to ``out_dir``, the outputs that the manifest promises and
``metrics.json``, ``{"claims": [{"claim", "holds", "here", "published", "source", "note"}], "numbers": {...}}``.
One that measures methods seed by seed also writes ``results.csv`` (:func:`dmcmc_core.report.tables.write_results`);
those of all items are gathered into one long table.

What a run makes is shown in ``figures/``, which git ignores; :func:`publish` copies it into ``figures/published``.
"""

# ruff: noqa: F401  the names are imported for those who import this package
from dmcmc_core.workbench.experiments.gallery import write_gallery
from dmcmc_core.workbench.experiments.keys import (
    check_parameters,
    declared_parameters,
    imported_modules,
    ingredients,
    missing_files,
    origin,
    provenance,
    read_cells,
    run_key,
    sha256,
    version,
)
from dmcmc_core.workbench.experiments.manifest import (
    PROFILES,
    Item,
    Project,
    Published,
    RequiredFile,
    here,
    load_manifest,
    published_of,
    read_yaml,
)
from dmcmc_core.workbench.experiments.pages import filled, write_pages
from dmcmc_core.workbench.experiments.published import beside_published, publish
from dmcmc_core.workbench.experiments.reports import (
    Outcome,
    clock,
    columns,
    items_table,
    overview,
    report,
    state,
    verdict,
    write_claims,
    write_items,
    write_results,
)
from dmcmc_core.workbench.experiments.runner import reproduce
from dmcmc_core.workbench.experiments.runs import (
    Failure,
    cells_done,
    end_with_parent,
    failed_folder,
    is_complete,
    newest_run,
    read_metrics,
    run_one,
)
