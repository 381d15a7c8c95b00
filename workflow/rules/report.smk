# What people look at: the record of each experiment, tables, curves and galleries.


rule experiment:
    input:
        experiment_inputs,
    output:
        f"{EXPERIMENTS}/{{experiment}}/seed{{seed}}/experiment.json",
    log:
        f"{EXPERIMENTS}/{{experiment}}/seed{{seed}}/log.txt",
    localrule: True
    conda:
        "../../envs/cpu.yaml"
    params:
        spec=experiment_spec,
    shell:
        "{WSSS} collect {params.spec:q} > {log:q} 2>&1"


rule table:
    input:
        records=table_records,
        published=table_published,
    output:
        csv=report(
            f"{TABLES}/{{table}}.csv",
            caption="../report/table.rst",
            category="Tables",
            labels={"table": "{table}"},
        ),
        markdown=f"{TABLES}/{{table}}.md",
    log:
        f"{TABLES}/{{table}}.log",
    localrule: True
    conda:
        "../../envs/cpu.yaml"
    params:
        options=table_options,
        directory=TABLES,
    shell:
        "{WSSS} table {input.records:q} --name {wildcards.table:q} {params.options:q} --output {params.directory:q} > {log:q} 2>&1"


rule curves:
    input:
        records(),
    output:
        report(
            directory(f"{FIGURES}/curves"),
            patterns=["{figure}.svg"],
            caption="../report/curves.rst",
            category="Curves",
            labels={"figure": "{figure}"},
        ),
    log:
        f"{FIGURES}/curves.log",
    localrule: True
    conda:
        "../../envs/cpu.yaml"
    shell:
        "{WSSS} figures {input:q} --output {output:q} > {log:q} 2>&1"


rule gallery:
    input:
        gallery_record,
    output:
        page=report(
            f"{FIGURES}/galleries/{{experiment}}/index.html",
            caption="../report/gallery.rst",
            category="Galleries",
            labels={"experiment": "{experiment}"},
        ),
        montage=f"{FIGURES}/galleries/{{experiment}}/gallery.png",
    log:
        f"{FIGURES}/galleries/{{experiment}}.log",
    conda:
        "../../envs/gpu.yaml"
    threads: RUN.threads
    resources:
        mem_mb=RUN.mem_mb,
        runtime=60,
    params:
        images=PLAN.config.report.gallery,
        seed=PLAN.config.report.seed,
        directory=f"{FIGURES}/galleries/{{experiment}}",
    shell:
        "{WSSS} gallery {input:q} --images {params.images} --seed {params.seed} --output {params.directory:q} > {log:q} 2>&1"
