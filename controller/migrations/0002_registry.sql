-- Model lines, their immutable releases, and the files that offline keys approve.

CREATE TABLE models (
    name       TEXT PRIMARY KEY,
    task       TEXT NOT NULL,
    created_ms INTEGER NOT NULL
) STRICT;

CREATE TABLE releases (
    model        TEXT NOT NULL REFERENCES models (name),
    version      INTEGER NOT NULL,
    task         TEXT NOT NULL,
    family       TEXT NOT NULL,
    state        TEXT NOT NULL DEFAULT 'pending' CHECK (state IN ('pending', 'approved', 'withdrawn')),
    -- dunlin_protocol::Bundle as JSON, the bytes that the TUF target names.
    manifest     BLOB NOT NULL,
    -- Lower-case hex.
    sha256       TEXT NOT NULL,
    -- Digest of the ONNX file, to tell when the same model is pushed twice.
    onnx         TEXT NOT NULL,
    created_by   TEXT NOT NULL,
    created_ms   INTEGER NOT NULL,
    approved_ms  INTEGER,
    withdrawn_ms INTEGER,
    PRIMARY KEY (model, version),
    UNIQUE (model, onnx)
) STRICT;
CREATE INDEX releases_by_task ON releases (task, state);
CREATE TRIGGER releases_immutable BEFORE UPDATE OF model, version, task, family, manifest, sha256, onnx ON releases
BEGIN SELECT RAISE(ABORT, 'a release is immutable'); END;
CREATE TRIGGER releases_kept BEFORE DELETE ON releases BEGIN SELECT RAISE(ABORT, 'releases are never deleted'); END;

CREATE TABLE aliases (
    model      TEXT NOT NULL,
    alias      TEXT NOT NULL,
    version    INTEGER NOT NULL,
    updated_ms INTEGER NOT NULL,
    PRIMARY KEY (model, alias),
    FOREIGN KEY (model, version) REFERENCES releases (model, version)
) STRICT, WITHOUT ROWID;

-- Task policies as they were uploaded; the one that the signed targets list is in force.
CREATE TABLE policies (
    sha256     TEXT PRIMARY KEY,
    task       TEXT NOT NULL,
    body       BLOB NOT NULL,
    in_force   INTEGER NOT NULL DEFAULT 0,
    created_by TEXT NOT NULL,
    created_ms INTEGER NOT NULL
) STRICT;
CREATE UNIQUE INDEX policies_in_force ON policies (task) WHERE in_force = 1;
