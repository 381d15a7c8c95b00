# The index of the data set: images, tags, splits; made images and converted masks, where there are any.


rule data:
    output:
        index=f"{STORE}/data/{{id}}/index.json",
        manifest=f"{STORE}/data/{{id}}/manifest.json",
    log:
        f"{STORE}/data/{{id}}/log.txt",
    benchmark:
        f"{STORE}/data/{{id}}/benchmark.tsv"
    retries: RUN.retries
    conda:
        "../../envs/cpu.yaml"
    threads: RUN.threads
    resources:
        mem_mb=4000,
        runtime=240,
    params:
        spec=spec("data"),
    shell:
        "{WSSS} data {params.spec:q} --threads {threads}"
