# The only rule that reads true masks (the segmenter of an upper bound apart).


rule evaluate:
    input:
        upstream("evaluate"),
    output:
        figures=f"{STORE}/evaluate/{{id}}/figures.json",
        manifest=f"{STORE}/evaluate/{{id}}/manifest.json",
    log:
        f"{STORE}/evaluate/{{id}}/log.txt",
    benchmark:
        f"{STORE}/evaluate/{{id}}/benchmark.tsv"
    retries: RUN.retries
    conda:
        "../../envs/gpu.yaml"
    threads: RUN.threads
    resources:
        gpu=needs_gpu("evaluate"),
        mem_mb=RUN.mem_mb,
        runtime=RUN.runtime,
    params:
        spec=spec("evaluate"),
    shell:
        "{WSSS} evaluate {params.spec:q} --threads {threads} --gpus {resources.gpu}"
