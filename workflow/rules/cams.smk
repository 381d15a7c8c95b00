# Class activation maps of the training images.


rule cams:
    input:
        upstream("cams"),
    output:
        scores=f"{STORE}/cams/{{id}}/scores.h5",
        manifest=f"{STORE}/cams/{{id}}/manifest.json",
    params:
        spec=spec("cams"),
    log:
        f"{STORE}/cams/{{id}}/log.txt",
    benchmark:
        f"{STORE}/cams/{{id}}/benchmark.tsv"
    threads: RUN.threads
    resources:
        gpu=1,
        mem_mb=RUN.mem_mb,
        runtime=RUN.runtime,
    retries: RUN.retries
    conda:
        "../../envs/gpu.yaml"
    shell:
        "{WSSS} cams {params.spec} --threads {threads} --gpus {resources.gpu}"
