# Object store: SeaweedFS, under its own user, which owns the data folder.
#   docker build -f infra/docker/s3.Dockerfile -t bert-pipeline-s3:4.48 .
FROM chrislusf/seaweedfs:4.48@sha256:4e61d15fd35994cb1e43e1e553dff106794841fd9a99ade2fc8c8bfce4d7872d
RUN install -d -o 10001 -g 10001 /var/lib/seaweedfs
USER 10001:10001
EXPOSE 8333
ENTRYPOINT ["/usr/bin/weed"]
# Its components communicate over loopback. Two ports are open to the network: S3 (8333) and gRPC (18333), which has no
# authentication, so only the store's clients may be on that network. Unneeded default features are switched off.
CMD ["server", "-dir=/var/lib/seaweedfs", "-ip=127.0.0.1", "-ip.bind=127.0.0.1", \
     "-s3", "-s3.port=8333", "-s3.ip.bind=0.0.0.0", "-s3.config=/run/secrets/s3.json", \
     "-s3.iam=false", "-s3.autoCreateBucket=false", "-s3.port.iceberg=0", "-s3.port.lance=0", \
     "-volume.max=0", "-master.volumeSizeLimitMB=1024", "-master.telemetry=false"]
