# From CAMs to pseudo masks.


rule crf:
    input:
        upstream("crf"),
    output:
        scores=f"{STORE}/crf/{{id}}/scores.h5",
        manifest=f"{STORE}/crf/{{id}}/manifest.json",
    log:
        f"{STORE}/crf/{{id}}/log.txt",
    benchmark:
        f"{STORE}/crf/{{id}}/benchmark.tsv"
    retries: RUN.retries
    conda:
        "../../envs/cpu.yaml"
    threads: RUN.threads
    resources:
        mem_mb=4000,
        runtime=240,
    params:
        spec=spec("crf"),
    shell:
        "{WSSS} crf {params.spec:q} --threads {threads}"


rule pseudo:
    input:
        upstream("pseudo"),
    output:
        summary=f"{STORE}/pseudo/{{id}}/summary.json",
        manifest=f"{STORE}/pseudo/{{id}}/manifest.json",
    log:
        f"{STORE}/pseudo/{{id}}/log.txt",
    benchmark:
        f"{STORE}/pseudo/{{id}}/benchmark.tsv"
    retries: RUN.retries
    conda:
        "../../envs/cpu.yaml"
    threads: RUN.threads
    resources:
        mem_mb=4000,
        runtime=240,
    params:
        spec=spec("pseudo"),
    shell:
        "{WSSS} pseudo {params.spec:q} --threads {threads}"
