"""The SQL of the later steps in `migrations`, as in `tables`. SQL that has shipped is never edited."""

IMPORTED_PIECES = """
CREATE TABLE imported_pieces (  -- so that what several files say counts once
    key BLOB NOT NULL,       -- of a conversation, replies, what was said of them, and the rater where one is named
    import INTEGER NOT NULL REFERENCES imports (id),
    count INTEGER NOT NULL,  -- how often this import's file says it
    PRIMARY KEY (key, import)
) STRICT;
ALTER TABLE imports ADD COLUMN next_row INTEGER;  -- where it goes on; NULL: by a version that kept no pieces
ALTER TABLE imports ADD COLUMN forgotten_at TEXT;
ALTER TABLE imported_rows ADD COLUMN beginning BLOB;  -- keyed: rows whose prompts begin alike have the same
CREATE INDEX imported_rows_by_beginning ON imported_rows (beginning, import);
"""

DRAWN_EVENLY = """
ALTER TABLE questions ADD COLUMN evenly REAL  -- the chance of drawing it, were all drawn evenly; NULL: not noted
    CHECK (evenly > 0 AND evenly <= 1);
"""

MEMBERS_SCORES = """
ALTER TABLE reward_scores ADD COLUMN members TEXT  -- each reward model's score, in order; NULL: the mean is all
    CHECK (members IS NULL OR json_valid(members));
"""

DECISIONS = """
CREATE TABLE decisions (  -- what was decided about an adapter, and by what evidence
    id INTEGER PRIMARY KEY,
    adapter TEXT NOT NULL REFERENCES adapters (id),
    against TEXT REFERENCES adapters (id),  -- NULL: the base
    night INTEGER REFERENCES nights (id),
    door TEXT NOT NULL,                     -- by what it was decided: "offline", ...
    outcome TEXT NOT NULL,                  -- "promoted", "candidate", "refused", ...
    risk REAL NOT NULL DEFAULT 0,           -- the chance of a false promotion that it took
    reason TEXT NOT NULL,
    evidence TEXT NOT NULL CHECK (json_valid(evidence)),
    at TEXT NOT NULL
) STRICT;
CREATE INDEX decisions_by_time ON decisions (at);
CREATE INDEX decisions_by_night ON decisions (night);
CREATE TABLE held_out_votes (  -- which held-out conversation judged which adapter, and how
    decision INTEGER NOT NULL REFERENCES decisions (id),
    conversation TEXT NOT NULL,  -- keyed: conversations that begin alike have the same
    user INTEGER NOT NULL REFERENCES users (id),
    side REAL NOT NULL CHECK (side IN (0, 0.5, 1)),  -- 1: for the adapter, 0: against it, 0.5: neither
    PRIMARY KEY (decision, conversation, user)
) STRICT;
"""
