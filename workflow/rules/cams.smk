# Class activation maps of the training images.


rule cams:
    input:
        upstream("cams"),
    output:
        scores=f"{STORE}/cams/{{id}}/scores.h5",
        manifest=f"{STORE}/cams/{{id}}/manifest.json",
    log:
        f"{STORE}/cams/{{id}}/log.txt",
    benchmark:
        f"{STORE}/cams/{{id}}/benchmark.tsv"
    retries: RUN.retries
    conda:
        "../../envs/gpu.yaml"
    threads: RUN.threads
    resources:
        gpu=1,
        mem_mb=RUN.mem_mb,
        runtime=RUN.runtime,
    params:
        spec=spec("cams"),
    shell:
        "{WSSS} cams {params.spec:q} --threads {threads} --gpus {resources.gpu}"
