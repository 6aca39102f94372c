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
