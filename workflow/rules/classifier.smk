# The classifier: the only network that learns from image-level labels alone.


rule classifier:
    input:
        upstream("classifier"),
    output:
        model=f"{STORE}/classifier/{{id}}/model.safetensors",
        description=f"{STORE}/classifier/{{id}}/model.json",
        metrics=f"{STORE}/classifier/{{id}}/metrics.csv",
        manifest=f"{STORE}/classifier/{{id}}/manifest.json",
    log:
        f"{STORE}/classifier/{{id}}/log.txt",
    benchmark:
        f"{STORE}/classifier/{{id}}/benchmark.tsv"
    retries: RUN.retries
    conda:
        "../../envs/gpu.yaml"
    threads: RUN.threads
    resources:
        gpu=RUN.gpus,
        mem_mb=RUN.mem_mb,
        runtime=RUN.runtime,
    params:
        spec=spec("classifier"),
    shell:
        "{WSSS} train {params.spec:q} --threads {threads} --gpus {resources.gpu}"
