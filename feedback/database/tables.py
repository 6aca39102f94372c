"""The SQL of each step in `migrations`. SQL that has shipped is never edited."""

PEOPLE = """
CREATE TABLE users (
    id INTEGER PRIMARY KEY,
    name TEXT NOT NULL UNIQUE COLLATE NOCASE,
    role TEXT NOT NULL CHECK (role IN ('chatter', 'rater', 'operator')),
    password_hash TEXT,  -- argon2; NULL for the local owner, who has no password
    created_at TEXT NOT NULL
) STRICT;
CREATE TABLE tokens (
    id INTEGER PRIMARY KEY,
    user INTEGER NOT NULL REFERENCES users (id),
    name TEXT NOT NULL,
    sha256 TEXT NOT NULL UNIQUE,  -- the token itself is shown once and never kept
    created_at TEXT NOT NULL,
    revoked_at TEXT
) STRICT;
CREATE TABLE consents (
    id INTEGER PRIMARY KEY,
    user INTEGER NOT NULL REFERENCES users (id),
    given INTEGER NOT NULL CHECK (given IN (0, 1)),
    at TEXT NOT NULL
) STRICT;
CREATE INDEX consents_by_user ON consents (user, id);
CREATE TABLE answered_requests (
    user INTEGER NOT NULL REFERENCES users (id),
    key TEXT NOT NULL,
    request_sha256 TEXT NOT NULL,
    answer TEXT NOT NULL CHECK (json_valid(answer)),
    at TEXT NOT NULL,
    PRIMARY KEY (user, key)
) STRICT;
"""

TALK = """
CREATE TABLE conversations (
    seq INTEGER PRIMARY KEY AUTOINCREMENT,
    id TEXT NOT NULL UNIQUE,
    user INTEGER NOT NULL REFERENCES users (id),
    source TEXT NOT NULL CHECK (source IN ('chat', 'api', 'pairs', 'terminal', 'import')),
    title TEXT NOT NULL DEFAULT '',
    leaf TEXT REFERENCES messages (id),  -- where the person last was in the tree
    created_at TEXT NOT NULL,
    hidden_at TEXT
) STRICT;
CREATE INDEX conversations_by_user ON conversations (user, seq);
CREATE TABLE messages (
    seq INTEGER PRIMARY KEY AUTOINCREMENT,
    id TEXT NOT NULL UNIQUE,
    conversation TEXT NOT NULL REFERENCES conversations (id),
    parent TEXT REFERENCES messages (id),
    role TEXT NOT NULL CHECK (role IN ('system', 'user', 'assistant')),
    content TEXT NOT NULL,
    created_at TEXT NOT NULL
) STRICT;
CREATE INDEX messages_by_conversation ON messages (conversation, seq);
CREATE INDEX messages_by_parent ON messages (parent);
CREATE TABLE replies (
    message TEXT PRIMARY KEY REFERENCES messages (id),
    adapter TEXT REFERENCES adapters (id),  -- NULL: the base itself
    base_sha256 TEXT,
    template_sha256 TEXT,
    sampling TEXT NOT NULL CHECK (json_valid(sampling)),
    token_ids BLOB,          -- int32, little-endian
    logprobs BLOB,           -- float32 nats of each token under the model, temperature 1
    sampled_logprobs BLOB,   -- float32 nats of each token under the distribution it was drawn from
    finish TEXT NOT NULL CHECK (finish IN ('stop', 'length', 'cancelled')),
    first_token_s REAL,
    total_s REAL
) STRICT;
CREATE INDEX replies_by_adapter ON replies (adapter);
CREATE TABLE pairs (
    seq INTEGER PRIMARY KEY AUTOINCREMENT,
    id TEXT NOT NULL UNIQUE,
    parent TEXT NOT NULL REFERENCES messages (id),
    left_reply TEXT NOT NULL UNIQUE REFERENCES messages (id),
    right_reply TEXT NOT NULL UNIQUE REFERENCES messages (id),
    asked TEXT NOT NULL CHECK (asked IN ('share', 'demand', 'api')),
    shown_at TEXT NOT NULL
) STRICT;
"""

RATINGS = """
CREATE TABLE votes (
    id INTEGER PRIMARY KEY,
    user INTEGER NOT NULL REFERENCES users (id),
    reply TEXT NOT NULL REFERENCES replies (message),
    value INTEGER NOT NULL CHECK (value IN (-1, 0, 1)),
    reasons TEXT NOT NULL DEFAULT '[]' CHECK (json_valid(reasons)),
    words TEXT NOT NULL DEFAULT '',
    at TEXT NOT NULL
) STRICT;
CREATE INDEX votes_by_reply ON votes (reply, user, id);
CREATE TABLE comparisons (
    id INTEGER PRIMARY KEY,
    user INTEGER NOT NULL REFERENCES users (id),
    left_reply TEXT NOT NULL REFERENCES replies (message),
    right_reply TEXT NOT NULL REFERENCES replies (message),
    choice TEXT NOT NULL CHECK (choice IN ('left', 'right', 'tie', 'both_bad', 'taken_back')),
    strength INTEGER CHECK (strength BETWEEN 1 AND 5),
    words TEXT NOT NULL DEFAULT '',
    at TEXT NOT NULL,
    CHECK (left_reply <> right_reply)
) STRICT;
CREATE INDEX comparisons_by_replies ON comparisons (left_reply, right_reply, user, id);
CREATE TABLE rankings (
    id INTEGER PRIMARY KEY,
    user INTEGER NOT NULL REFERENCES users (id),
    parent TEXT NOT NULL REFERENCES messages (id),
    replies TEXT NOT NULL CHECK (json_valid(replies)),
    ranks TEXT NOT NULL CHECK (json_valid(ranks)),  -- 1 is best; equal ranks are ties
    at TEXT NOT NULL
) STRICT;
CREATE INDEX rankings_by_parent ON rankings (parent, user, id);
CREATE TABLE corrections (
    id INTEGER PRIMARY KEY,
    user INTEGER NOT NULL REFERENCES users (id),
    reply TEXT NOT NULL REFERENCES replies (message),
    text TEXT NOT NULL,  -- empty: taken back
    at TEXT NOT NULL
) STRICT;
CREATE INDEX corrections_by_reply ON corrections (reply, user, id);
CREATE TABLE critiques (
    id INTEGER PRIMARY KEY,
    user INTEGER NOT NULL REFERENCES users (id),
    reply TEXT NOT NULL REFERENCES replies (message),
    text TEXT NOT NULL,  -- empty: taken back
    at TEXT NOT NULL
) STRICT;
CREATE INDEX critiques_by_reply ON critiques (reply, user, id);
"""

SCHOOL = """
CREATE TABLE adapters (
    id TEXT PRIMARY KEY,
    parent TEXT REFERENCES adapters (id),
    night INTEGER REFERENCES nights (id),
    method TEXT NOT NULL,
    base_sha256 TEXT NOT NULL,
    weights_sha256 TEXT NOT NULL,
    verdict TEXT NOT NULL CHECK (verdict IN ('candidate', 'refused', 'retired')),
    reason TEXT NOT NULL,
    created_at TEXT NOT NULL
) STRICT;
CREATE TABLE promotions (
    id INTEGER PRIMARY KEY,
    adapter TEXT REFERENCES adapters (id),  -- NULL: back to the base
    user INTEGER REFERENCES users (id),     -- NULL: the program itself
    reason TEXT NOT NULL,
    proof TEXT NOT NULL CHECK (json_valid(proof)),
    at TEXT NOT NULL
) STRICT;
CREATE TABLE nights (
    id INTEGER PRIMARY KEY AUTOINCREMENT,
    state TEXT NOT NULL CHECK (state IN ('running', 'done', 'nothing', 'failed', 'cancelled', 'abandoned')),
    pid INTEGER NOT NULL,
    method TEXT NOT NULL,
    settings TEXT NOT NULL CHECK (json_valid(settings)),
    counts TEXT NOT NULL DEFAULT '{}' CHECK (json_valid(counts)),
    data_sha256 TEXT,
    phase TEXT NOT NULL DEFAULT 'starting',
    step INTEGER NOT NULL DEFAULT 0,
    steps INTEGER NOT NULL DEFAULT 0,
    eta_s REAL,
    adapter TEXT REFERENCES adapters (id),
    reason TEXT NOT NULL DEFAULT '',
    started_at TEXT NOT NULL,
    beat_at TEXT NOT NULL,
    ended_at TEXT
) STRICT;
CREATE TABLE night_steps (
    night INTEGER NOT NULL REFERENCES nights (id),
    step INTEGER NOT NULL,
    metrics TEXT NOT NULL CHECK (json_valid(metrics)),
    at TEXT NOT NULL,
    PRIMARY KEY (night, step)
) STRICT;
CREATE TABLE schedules (
    id INTEGER PRIMARY KEY,
    user INTEGER REFERENCES users (id),
    cron TEXT NOT NULL,
    time_zone TEXT NOT NULL,
    enabled INTEGER NOT NULL CHECK (enabled IN (0, 1)),
    at TEXT NOT NULL
) STRICT;
CREATE TABLE settings (
    id INTEGER PRIMARY KEY,
    user INTEGER REFERENCES users (id),
    name TEXT NOT NULL,
    value TEXT NOT NULL CHECK (json_valid(value)),
    at TEXT NOT NULL
) STRICT;
CREATE INDEX settings_by_name ON settings (name, id);
CREATE TABLE audit (
    id INTEGER PRIMARY KEY,
    user INTEGER REFERENCES users (id),
    action TEXT NOT NULL,
    subject TEXT NOT NULL,
    detail TEXT NOT NULL DEFAULT '{}' CHECK (json_valid(detail)),
    at TEXT NOT NULL
) STRICT;
"""

CLOCK_AND_GATE = """
ALTER TABLE schedules ADD COLUMN grace_minutes INTEGER NOT NULL DEFAULT 60 CHECK (grace_minutes >= 0);
ALTER TABLE schedules ADD COLUMN every_new INTEGER CHECK (every_new > 0);
CREATE TABLE occurrences (
    id INTEGER PRIMARY KEY,
    cause TEXT NOT NULL CHECK (cause IN ('clock', 'feedback')),
    due TEXT NOT NULL,  -- the time it was due, or the feedback that made it due; each comes once
    outcome TEXT NOT NULL CHECK (outcome IN ('started', 'skipped')),
    reason TEXT NOT NULL,
    night INTEGER REFERENCES nights (id),
    at TEXT NOT NULL,
    UNIQUE (cause, due)
) STRICT;
ALTER TABLE nights ADD COLUMN verdict TEXT CHECK (verdict IN ('promoted', 'candidate', 'refused'));
ALTER TABLE adapters ADD COLUMN evidence TEXT NOT NULL DEFAULT '{}' CHECK (json_valid(evidence));
CREATE TABLE split_people (
    user INTEGER PRIMARY KEY REFERENCES users (id),
    held_out INTEGER NOT NULL CHECK (held_out IN (0, 1)),  -- all that this person says is kept for judging
    at TEXT NOT NULL
) STRICT;
"""

REFERENCE_LOGPROBS = """
CREATE TABLE reference_logprobs (  -- a cache: what is lost is computed again
    reply_sha256 TEXT NOT NULL,  -- of the token ids of prompt and reply
    reference TEXT NOT NULL,     -- the model's hash, and its number format
    template_sha256 TEXT NOT NULL,
    logprobs BLOB NOT NULL,      -- float32 nats of each reply token
    PRIMARY KEY (reply_sha256, reference, template_sha256)
) STRICT;
"""


ALL_THAT_IS_SAID = """
ALTER TABLE users ADD COLUMN kind TEXT NOT NULL DEFAULT 'person'
    CHECK (kind IN ('person', 'anonymous', 'model', 'imported'));
ALTER TABLE users ADD COLUMN forgotten_at TEXT;
CREATE TABLE conversation_consents (
    id INTEGER PRIMARY KEY,
    conversation TEXT NOT NULL REFERENCES conversations (id),
    user INTEGER NOT NULL REFERENCES users (id),
    given INTEGER NOT NULL CHECK (given IN (0, 1)),
    at TEXT NOT NULL
) STRICT;
CREATE INDEX conversation_consents_by_conversation ON conversation_consents (conversation, id);
CREATE TABLE questions (
    seq INTEGER PRIMARY KEY,
    id TEXT NOT NULL UNIQUE,
    user INTEGER NOT NULL REFERENCES users (id),
    kind TEXT NOT NULL CHECK (kind IN ('comparison', 'ranking')),
    parent TEXT NOT NULL REFERENCES messages (id),
    replies TEXT NOT NULL CHECK (json_valid(replies)),  -- in screen order
    why TEXT NOT NULL,
    propensity REAL NOT NULL CHECK (propensity > 0 AND propensity <= 1),
    asked_at TEXT NOT NULL,
    answered_at TEXT
) STRICT;
CREATE INDEX questions_by_parent ON questions (parent, user);
CREATE INDEX questions_by_user ON questions (user, answered_at);
CREATE TABLE reward_scores (
    reply TEXT PRIMARY KEY REFERENCES replies (message),
    mean REAL NOT NULL,       -- over the reward models of the newest night
    deviation REAL NOT NULL,  -- among them
    at TEXT NOT NULL
) STRICT;
CREATE TABLE gold (
    id INTEGER PRIMARY KEY,
    better TEXT NOT NULL REFERENCES replies (message),
    worse TEXT NOT NULL REFERENCES replies (message),
    user INTEGER REFERENCES users (id),
    at TEXT NOT NULL,
    UNIQUE (better, worse)
) STRICT;
CREATE TABLE comparisons_2 (
    id INTEGER PRIMARY KEY,
    user INTEGER NOT NULL REFERENCES users (id),
    left_reply TEXT NOT NULL REFERENCES replies (message),
    right_reply TEXT NOT NULL REFERENCES replies (message),
    choice TEXT NOT NULL CHECK (choice IN ('left', 'right', 'tie', 'both_bad', 'cannot_tell', 'taken_back')),
    strength INTEGER CHECK (strength BETWEEN 1 AND 5),
    words TEXT NOT NULL DEFAULT '',
    at TEXT NOT NULL,
    reasons TEXT NOT NULL DEFAULT '[]' CHECK (json_valid(reasons)),
    shown_s REAL CHECK (shown_s >= 0),              -- how long both were on the screen
    question TEXT REFERENCES questions (id),        -- NULL: nobody chose it to be asked
    CHECK (left_reply <> right_reply)
) STRICT;
INSERT INTO comparisons_2 (id, user, left_reply, right_reply, choice, strength, words, at)
    SELECT id, user, left_reply, right_reply, choice, strength, words, at FROM comparisons;
DROP TABLE comparisons;
ALTER TABLE comparisons_2 RENAME TO comparisons;
CREATE INDEX comparisons_by_replies ON comparisons (left_reply, right_reply, user, id);
CREATE INDEX comparisons_by_right ON comparisons (right_reply, left_reply, user, id);
ALTER TABLE rankings ADD COLUMN all_wrong INTEGER NOT NULL DEFAULT 0 CHECK (all_wrong IN (0, 1));
ALTER TABLE rankings ADD COLUMN taken_back INTEGER NOT NULL DEFAULT 0 CHECK (taken_back IN (0, 1));
ALTER TABLE rankings ADD COLUMN question TEXT REFERENCES questions (id);
CREATE TABLE labels (
    id INTEGER PRIMARY KEY,
    user INTEGER NOT NULL REFERENCES users (id),
    reply TEXT NOT NULL REFERENCES replies (message),
    label TEXT NOT NULL,
    given INTEGER NOT NULL CHECK (given IN (0, 1)),  -- 0: taken back
    words TEXT NOT NULL DEFAULT '',
    at TEXT NOT NULL
) STRICT;
CREATE INDEX labels_by_reply ON labels (reply, user, label, id);
CREATE TABLE signals (
    id INTEGER PRIMARY KEY,
    user INTEGER NOT NULL REFERENCES users (id),
    reply TEXT NOT NULL REFERENCES replies (message),
    kind TEXT NOT NULL CHECK (kind IN ('retry', 'edit', 'copy', 'abandon')),
    at TEXT NOT NULL
) STRICT;
CREATE INDEX signals_by_reply ON signals (reply, user, id);
CREATE INDEX votes_by_time ON votes (at, value);
CREATE INDEX comparisons_by_time ON comparisons (at, choice);
CREATE INDEX rankings_by_time ON rankings (at);
CREATE INDEX corrections_by_time ON corrections (at);
CREATE INDEX critiques_by_time ON critiques (at);
CREATE TABLE imports (
    id INTEGER PRIMARY KEY,
    name TEXT NOT NULL,
    format TEXT NOT NULL,
    source TEXT NOT NULL,
    licence TEXT NOT NULL,
    sha256 TEXT NOT NULL,  -- of the file
    kept INTEGER NOT NULL DEFAULT 0,
    left_out TEXT NOT NULL DEFAULT '{}' CHECK (json_valid(left_out)),
    began_at TEXT NOT NULL,
    ended_at TEXT  -- NULL: it was interrupted, and goes on when the file is imported again
) STRICT;
CREATE TABLE imported_rows (
    import INTEGER NOT NULL REFERENCES imports (id),
    row INTEGER NOT NULL,
    conversation TEXT NOT NULL REFERENCES conversations (id),
    extra TEXT NOT NULL DEFAULT '{}' CHECK (json_valid(extra)),  -- what the row held beside
    PRIMARY KEY (import, row)
) STRICT;
CREATE INDEX imported_rows_by_conversation ON imported_rows (conversation);
CREATE TABLE night_people (
    night INTEGER NOT NULL REFERENCES nights (id),
    user INTEGER NOT NULL REFERENCES users (id),
    examples INTEGER NOT NULL,
    PRIMARY KEY (night, user)
) STRICT;
CREATE TABLE retrains (
    adapter TEXT NOT NULL REFERENCES adapters (id),
    user INTEGER NOT NULL REFERENCES users (id),  -- whose forgotten words it was, or may have been, trained on
    at TEXT NOT NULL,
    PRIMARY KEY (adapter, user)
) STRICT;
"""

WHOSE_CONVERSATIONS = """
ALTER TABLE night_people ADD COLUMN complete INTEGER NOT NULL DEFAULT 0 CHECK (complete IN (0, 1));
"""  # 1: the night's list names everybody whose words it learns from; 0: only those who rated pairs and thumbs


SPLIT_OPENINGS = """
CREATE TABLE split_secret (
    id INTEGER PRIMARY KEY CHECK (id = 1),
    secret TEXT NOT NULL  -- hexadecimal; made once, never changed
) STRICT;
CREATE TABLE split_openings (  -- those of before there was a secret
    opening TEXT PRIMARY KEY,  -- an HMAC of it
    part TEXT NOT NULL CHECK (part IN ('training', 'stopping', 'held_out'))
) STRICT;
CREATE INDEX votes_by_user ON votes (user, at);
CREATE INDEX comparisons_by_user ON comparisons (user, at);
CREATE INDEX rankings_by_user ON rankings (user, at);
CREATE INDEX corrections_by_user ON corrections (user, at);
CREATE INDEX critiques_by_user ON critiques (user, at);
CREATE INDEX labels_by_user ON labels (user, at);
"""


SESSIONS = """
CREATE TABLE sessions (
    id INTEGER PRIMARY KEY,
    user INTEGER NOT NULL REFERENCES users (id),
    sha256 TEXT NOT NULL UNIQUE,  -- of what the browser's cookie holds
    address TEXT NOT NULL,
    agent TEXT NOT NULL,          -- "Firefox on Linux"
    made_at TEXT NOT NULL,
    seen_at TEXT NOT NULL,        -- to within some minutes
    ended_at TEXT
) STRICT;
CREATE INDEX sessions_by_user ON sessions (user, id);
ALTER TABLE users ADD COLUMN disabled_at TEXT;
"""
