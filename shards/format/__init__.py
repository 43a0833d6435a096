"""The shard format: all reading and writing of shard folders goes through this package.

    DIR/
      manifest.json      what the data set is; the digest of its canonical form names the data set
      tokenizer.json     the vocabulary that `tokens` refer to
      index.npz          where each sample lies, so that any one is read with a single pread
      quarantine.jsonl   every rejected record or caption, and why it was rejected
      NAME-000000.tar    KEY.jpg + KEY.json, adjacent, plain ustar, uncompressed
      NAME-000000.json   the sidecar of that tar: written last, so it is there only for a whole tar
      report.json        counts, times and speed of the build

A sample's JSON has image_id, file_name, width, height, captions (raw strings) and tokens (one list
of ids a caption, without begin and end marks).
"""
