# From CAMs to pseudo masks: thresholds, affinity labels, AffinityNet and boundary network, random walk, dense CRF.


rule threshold:
    input:
        upstream("threshold"),
    output:
        threshold=f"{STORE}/threshold/{{id}}/threshold.json",
        manifest=f"{STORE}/threshold/{{id}}/manifest.json",
    log:
        f"{STORE}/threshold/{{id}}/log.txt",
    benchmark:
        f"{STORE}/threshold/{{id}}/benchmark.tsv"
    retries: RUN.retries
    conda:
        "../../envs/cpu.yaml"
    threads: RUN.threads
    resources:
        mem_mb=4000,
        runtime=240,
    params:
        spec=spec("threshold"),
    shell:
        "{WSSS} threshold {params.spec:q} --threads {threads}"


rule affinity_labels:
    input:
        upstream("affinity-labels"),
    output:
        summary=f"{STORE}/affinity-labels/{{id}}/summary.json",
        manifest=f"{STORE}/affinity-labels/{{id}}/manifest.json",
    log:
        f"{STORE}/affinity-labels/{{id}}/log.txt",
    benchmark:
        f"{STORE}/affinity-labels/{{id}}/benchmark.tsv"
    retries: RUN.retries
    conda:
        "../../envs/cpu.yaml"
    threads: RUN.threads
    resources:
        mem_mb=4000,
        runtime=240,
    params:
        spec=spec("affinity-labels"),
    shell:
        "{WSSS} affinity-labels {params.spec:q} --threads {threads}"


rule affinity:
    input:
        upstream("affinity"),
    output:
        model=f"{STORE}/affinity/{{id}}/model.safetensors",
        description=f"{STORE}/affinity/{{id}}/model.json",
        metrics=f"{STORE}/affinity/{{id}}/metrics.csv",
        manifest=f"{STORE}/affinity/{{id}}/manifest.json",
    log:
        f"{STORE}/affinity/{{id}}/log.txt",
    benchmark:
        f"{STORE}/affinity/{{id}}/benchmark.tsv"
    retries: RUN.retries
    conda:
        "../../envs/gpu.yaml"
    threads: RUN.threads
    resources:
        gpu=RUN.gpus,
        mem_mb=RUN.mem_mb,
        runtime=RUN.runtime,
    params:
        spec=spec("affinity"),
    shell:
        "{WSSS} train {params.spec:q} --threads {threads} --gpus {resources.gpu}"


rule boundary:
    input:
        upstream("boundary"),
    output:
        model=f"{STORE}/boundary/{{id}}/model.safetensors",
        description=f"{STORE}/boundary/{{id}}/model.json",
        metrics=f"{STORE}/boundary/{{id}}/metrics.csv",
        manifest=f"{STORE}/boundary/{{id}}/manifest.json",
    log:
        f"{STORE}/boundary/{{id}}/log.txt",
    benchmark:
        f"{STORE}/boundary/{{id}}/benchmark.tsv"
    retries: RUN.retries
    conda:
        "../../envs/gpu.yaml"
    threads: RUN.threads
    resources:
        gpu=RUN.gpus,
        mem_mb=RUN.mem_mb,
        runtime=RUN.runtime,
    params:
        spec=spec("boundary"),
    shell:
        "{WSSS} train {params.spec:q} --threads {threads} --gpus {resources.gpu}"


rule walk:
    input:
        upstream("walk"),
    output:
        scores=f"{STORE}/walk/{{id}}/scores.h5",
        manifest=f"{STORE}/walk/{{id}}/manifest.json",
    log:
        f"{STORE}/walk/{{id}}/log.txt",
    benchmark:
        f"{STORE}/walk/{{id}}/benchmark.tsv"
    retries: RUN.retries
    conda:
        "../../envs/gpu.yaml"
    threads: RUN.threads
    resources:
        gpu=1,
        mem_mb=RUN.mem_mb,
        runtime=RUN.runtime,
    params:
        spec=spec("walk"),
    shell:
        "{WSSS} walk {params.spec:q} --threads {threads} --gpus {resources.gpu}"


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
