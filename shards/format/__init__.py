"""The shard format. Whoever reads or writes a shard folder does so through this package.

    DIR/
      manifest.json      what the data set is; the digest of its canonical form names the data set
      tokenizer.json     the vocabulary that `tokens` refer to
      index.npz          where each sample lies, so that any one is read with a single pread
      quarantine.jsonl   every rejected record or caption, and why it was rejected
      NAME-000000.tar    KEY.jpg + KEY.json, adjacent, plain ustar, uncompressed
      NAME-000000.json   the sidecar of that tar: written last, so it vouches for a whole tar

A sample's JSON has image_id, file_name, width, height, captions (raw strings) and tokens (one list
of ids a caption, without begin and end marks).
"""

# transitional: importers outside this package move to the modules named here.
from shards.format.index import read_index as read_index
from shards.format.manifest import Manifest as Manifest
from shards.format.manifest import ShardEntry as ShardEntry
from shards.format.manifest import check_index as check_index
from shards.format.manifest import read_manifest as read_manifest
from shards.format.manifest import write_manifest as write_manifest
from shards.format.names import INDEX as INDEX
from shards.format.names import MANIFEST as MANIFEST
from shards.format.names import TOKENIZER as TOKENIZER
from shards.format.names import image_id_of as image_id_of
from shards.format.sidecar import Sidecar as Sidecar
from shards.format.stored_json import canonical_json as canonical_json
