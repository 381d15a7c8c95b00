# The segmentation network and its predictions.


rule segmenter:
    input:
        upstream("segmenter"),
    output:
        model=f"{STORE}/segmenter/{{id}}/model.safetensors",
        description=f"{STORE}/segmenter/{{id}}/model.json",
        metrics=f"{STORE}/segmenter/{{id}}/metrics.csv",
        manifest=f"{STORE}/segmenter/{{id}}/manifest.json",
    log:
        f"{STORE}/segmenter/{{id}}/log.txt",
    benchmark:
        f"{STORE}/segmenter/{{id}}/benchmark.tsv"
    retries: RUN.retries
    conda:
        "../../envs/gpu.yaml"
    threads: RUN.threads
    resources:
        gpu=RUN.gpus,
        mem_mb=RUN.mem_mb,
        runtime=RUN.runtime,
    params:
        spec=spec("segmenter"),
    shell:
        "{WSSS} train {params.spec:q} --threads {threads} --gpus {resources.gpu}"


rule predict:
    input:
        upstream("predict"),
    output:
        manifest=f"{STORE}/predict/{{id}}/manifest.json",
    log:
        f"{STORE}/predict/{{id}}/log.txt",
    benchmark:
        f"{STORE}/predict/{{id}}/benchmark.tsv"
    retries: RUN.retries
    conda:
        "../../envs/gpu.yaml"
    threads: RUN.threads
    resources:
        gpu=1,
        mem_mb=RUN.mem_mb,
        runtime=RUN.runtime,
    params:
        spec=spec("predict"),
    shell:
        "{WSSS} predict {params.spec:q} --threads {threads} --gpus {resources.gpu}"
