# The index of the data set: images, tags, splits; made images and converted masks, where there are any.


rule data:
    output:
        index=f"{STORE}/data/{{id}}/index.json",
        manifest=f"{STORE}/data/{{id}}/manifest.json",
    params:
        spec=spec("data"),
    log:
        f"{STORE}/data/{{id}}/log.txt",
    benchmark:
        f"{STORE}/data/{{id}}/benchmark.tsv"
    threads: RUN.threads
    resources:
        mem_mb=4000,
        runtime=240,
    retries: RUN.retries
    conda:
        "../../envs/cpu.yaml"
    shell:
        "{WSSS} data {params.spec} --threads {threads}"
