BEGIN TRANSACTION;
CREATE TABLE "_sqlite_migrations" (
   "id" INTEGER PRIMARY KEY,
   "migration_set" TEXT,
   "name" TEXT,
   "applied_at" TEXT
);
INSERT INTO "_sqlite_migrations" VALUES(1,'nightschool','m0001_first_tables','2026-11-22 22:22:42.578473+00:00');
INSERT INTO "_sqlite_migrations" VALUES(2,'nightschool','m0002_clock_and_gate','2026-11-22 22:22:42.580376+00:00');
INSERT INTO "_sqlite_migrations" VALUES(3,'nightschool','m0003_all_that_is_said','2026-11-23 06:28:32.728477+00:00');
INSERT INTO "_sqlite_migrations" VALUES(4,'nightschool','m0004_reference_logprobs','2026-11-23 06:28:32.731852+00:00');
INSERT INTO "_sqlite_migrations" VALUES(5,'nightschool','m0005_whose_conversations','2026-11-28 17:19:51.713477+00:00');
INSERT INTO "_sqlite_migrations" VALUES(6,'nightschool','m0006_sessions','2026-11-28 17:19:51.717765+00:00');
INSERT INTO "_sqlite_migrations" VALUES(7,'nightschool','m0007_split_openings','2026-11-28 17:19:51.721680+00:00');
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
, evidence TEXT NOT NULL DEFAULT '{}' CHECK (json_valid(evidence))) STRICT;
INSERT INTO "adapters" VALUES('night-0001',NULL,1,'auto','bbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbb','wwwwwwwwwwwwwwwwwwwwwwwwwwwwwwwwwwwwwwwwwwwwwwwwwwwwwwwwwwwwwwww','candidate','better','2026-11-05T10:00:00.000+00:00','{"gain": 0.1}');
CREATE TABLE answered_requests (
    user INTEGER NOT NULL REFERENCES users (id),
    key TEXT NOT NULL,
    request_sha256 TEXT NOT NULL,
    answer TEXT NOT NULL CHECK (json_valid(answer)),
    at TEXT NOT NULL,
    PRIMARY KEY (user, key)
) STRICT;
INSERT INTO "answered_requests" VALUES(1,'key-1','aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa','{"id": 1}','2026-11-02T10:00:00.000+00:00');
INSERT INTO "answered_requests" VALUES(2,'key-1','aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa','{"id": 1}','2026-11-02T10:00:00.000+00:00');
CREATE TABLE audit (
    id INTEGER PRIMARY KEY,
    user INTEGER REFERENCES users (id),
    action TEXT NOT NULL,
    subject TEXT NOT NULL,
    detail TEXT NOT NULL DEFAULT '{}' CHECK (json_valid(detail)),
    at TEXT NOT NULL
) STRICT;
INSERT INTO "audit" VALUES(1,1,'promote','night-0001','{}','2026-11-05T10:00:00.000+00:00');
CREATE TABLE "comparisons" (
    id INTEGER PRIMARY KEY,
    user INTEGER NOT NULL REFERENCES users (id),
    left_reply TEXT NOT NULL REFERENCES replies (message),
    right_reply TEXT NOT NULL REFERENCES replies (message),
    choice TEXT NOT NULL CHECK (choice IN ('left', 'right', 'tie', 'both_bad', 'cannot_tell', 'taken_back')),
    strength INTEGER CHECK (strength BETWEEN 1 AND 5),
    words TEXT NOT NULL DEFAULT '',
    at TEXT NOT NULL,
    reasons TEXT NOT NULL DEFAULT '[]' CHECK (json_valid(reasons)),
    shown_s REAL CHECK (shown_s >= 0),              
    question TEXT REFERENCES questions (id),        
    CHECK (left_reply <> right_reply)
) STRICT;
INSERT INTO "comparisons" VALUES(1,1,'l000000000000001','r000000000000001','left',4,'kinder','2026-11-03T10:00:00.000+00:00','[]',NULL,NULL);
INSERT INTO "comparisons" VALUES(2,1,'r000000000000001','l000000000000001','tie',NULL,'','2026-11-04T10:00:00.000+00:00','[]',NULL,NULL);
INSERT INTO "comparisons" VALUES(3,2,'l000000000000002','r000000000000002','left',4,'kinder','2026-11-03T10:00:00.000+00:00','[]',NULL,NULL);
INSERT INTO "comparisons" VALUES(4,2,'r000000000000002','l000000000000002','tie',NULL,'','2026-11-04T10:00:00.000+00:00','[]',NULL,NULL);
INSERT INTO "comparisons" VALUES(5,2,'r000000000000001','l000000000000001','right',5,'','2026-11-06T10:00:00.000+00:00','["style"]',3.5,'q000000000000001');
CREATE TABLE consents (
    id INTEGER PRIMARY KEY,
    user INTEGER NOT NULL REFERENCES users (id),
    given INTEGER NOT NULL CHECK (given IN (0, 1)),
    at TEXT NOT NULL
) STRICT;
INSERT INTO "consents" VALUES(1,1,1,'2026-11-01T10:00:00.000+00:00');
INSERT INTO "consents" VALUES(2,2,1,'2026-11-01T10:00:00.000+00:00');
INSERT INTO "consents" VALUES(3,2,0,'2026-11-02T10:00:00.000+00:00');
CREATE TABLE conversation_consents (
    id INTEGER PRIMARY KEY,
    conversation TEXT NOT NULL REFERENCES conversations (id),
    user INTEGER NOT NULL REFERENCES users (id),
    given INTEGER NOT NULL CHECK (given IN (0, 1)),
    at TEXT NOT NULL
) STRICT;
INSERT INTO "conversation_consents" VALUES(1,'c000000000000002',2,0,'2026-11-06T10:00:00.000+00:00');
CREATE TABLE conversations (
    seq INTEGER PRIMARY KEY AUTOINCREMENT,
    id TEXT NOT NULL UNIQUE,
    user INTEGER NOT NULL REFERENCES users (id),
    source TEXT NOT NULL CHECK (source IN ('chat', 'api', 'pairs', 'terminal', 'import')),
    title TEXT NOT NULL DEFAULT '',
    leaf TEXT REFERENCES messages (id),  
    created_at TEXT NOT NULL,
    hidden_at TEXT
) STRICT;
INSERT INTO "conversations" VALUES(1,'c000000000000001',1,'chat','hello','l000000000000001','2026-11-01T10:00:00.000+00:00',NULL);
INSERT INTO "conversations" VALUES(2,'c000000000000002',2,'chat','hello','l000000000000002','2026-11-01T10:00:00.000+00:00',NULL);
CREATE TABLE corrections (
    id INTEGER PRIMARY KEY,
    user INTEGER NOT NULL REFERENCES users (id),
    reply TEXT NOT NULL REFERENCES replies (message),
    text TEXT NOT NULL,  
    at TEXT NOT NULL
) STRICT;
INSERT INTO "corrections" VALUES(1,1,'r000000000000001','please go away','2026-11-04T10:00:00.000+00:00');
INSERT INTO "corrections" VALUES(2,2,'r000000000000002','please go away','2026-11-04T10:00:00.000+00:00');
CREATE TABLE critiques (
    id INTEGER PRIMARY KEY,
    user INTEGER NOT NULL REFERENCES users (id),
    reply TEXT NOT NULL REFERENCES replies (message),
    text TEXT NOT NULL,  
    at TEXT NOT NULL
) STRICT;
INSERT INTO "critiques" VALUES(1,1,'r000000000000001','rude','2026-11-04T10:00:00.000+00:00');
INSERT INTO "critiques" VALUES(2,2,'r000000000000002','rude','2026-11-04T10:00:00.000+00:00');
CREATE TABLE gold (
    id INTEGER PRIMARY KEY,
    better TEXT NOT NULL REFERENCES replies (message),
    worse TEXT NOT NULL REFERENCES replies (message),
    user INTEGER REFERENCES users (id),
    at TEXT NOT NULL,
    UNIQUE (better, worse)
) STRICT;
INSERT INTO "gold" VALUES(1,'l000000000000001','r000000000000001',1,'2026-11-06T10:00:00.000+00:00');
CREATE TABLE imported_rows (
    import INTEGER NOT NULL REFERENCES imports (id),
    row INTEGER NOT NULL,
    conversation TEXT NOT NULL REFERENCES conversations (id),
    extra TEXT NOT NULL DEFAULT '{}' CHECK (json_valid(extra)),  
    PRIMARY KEY (import, row)
) STRICT;
INSERT INTO "imported_rows" VALUES(1,7,'c000000000000002','{"split": "train"}');
CREATE TABLE imports (
    id INTEGER PRIMARY KEY,
    name TEXT NOT NULL,
    format TEXT NOT NULL,
    source TEXT NOT NULL,
    licence TEXT NOT NULL,
    sha256 TEXT NOT NULL,  
    kept INTEGER NOT NULL DEFAULT 0,
    left_out TEXT NOT NULL DEFAULT '{}' CHECK (json_valid(left_out)),
    began_at TEXT NOT NULL,
    ended_at TEXT  
) STRICT;
INSERT INTO "imports" VALUES(1,'pairs.jsonl','hh','https://example.org','mit','eeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeee',1,'{"duplicate": 2}','2026-11-06T10:00:00.000+00:00','2026-11-06T10:00:00.000+00:00');
CREATE TABLE labels (
    id INTEGER PRIMARY KEY,
    user INTEGER NOT NULL REFERENCES users (id),
    reply TEXT NOT NULL REFERENCES replies (message),
    label TEXT NOT NULL,
    given INTEGER NOT NULL CHECK (given IN (0, 1)),  
    words TEXT NOT NULL DEFAULT '',
    at TEXT NOT NULL
) STRICT;
INSERT INTO "labels" VALUES(1,1,'r000000000000001','untrue',1,'it is round','2026-11-06T10:00:00.000+00:00');
INSERT INTO "labels" VALUES(2,1,'r000000000000001','untrue',0,'','2026-11-06T10:00:00.000+00:00');
CREATE TABLE messages (
    seq INTEGER PRIMARY KEY AUTOINCREMENT,
    id TEXT NOT NULL UNIQUE,
    conversation TEXT NOT NULL REFERENCES conversations (id),
    parent TEXT REFERENCES messages (id),
    role TEXT NOT NULL CHECK (role IN ('system', 'user', 'assistant')),
    content TEXT NOT NULL,
    created_at TEXT NOT NULL
) STRICT;
INSERT INTO "messages" VALUES(1,'m000000000000001','c000000000000001',NULL,'user','hello; -- it’s me','2026-11-01T10:00:00.000+00:00');
INSERT INTO "messages" VALUES(2,'l000000000000001','c000000000000001','m000000000000001','assistant','good day to you','2026-11-01T10:00:00.000+00:00');
INSERT INTO "messages" VALUES(3,'r000000000000001','c000000000000001','m000000000000001','assistant','go away','2026-11-01T10:00:00.000+00:00');
INSERT INTO "messages" VALUES(4,'m000000000000002','c000000000000002',NULL,'user','hello; -- it’s me','2026-11-01T10:00:00.000+00:00');
INSERT INTO "messages" VALUES(5,'l000000000000002','c000000000000002','m000000000000002','assistant','good day to you','2026-11-01T10:00:00.000+00:00');
INSERT INTO "messages" VALUES(6,'r000000000000002','c000000000000002','m000000000000002','assistant','go away','2026-11-01T10:00:00.000+00:00');
CREATE TABLE night_people (
    night INTEGER NOT NULL REFERENCES nights (id),
    user INTEGER NOT NULL REFERENCES users (id),
    examples INTEGER NOT NULL, complete INTEGER NOT NULL DEFAULT 0 CHECK (complete IN (0, 1)),
    PRIMARY KEY (night, user)
) STRICT;
INSERT INTO "night_people" VALUES(1,1,3,0);
CREATE TABLE night_steps (
    night INTEGER NOT NULL REFERENCES nights (id),
    step INTEGER NOT NULL,
    metrics TEXT NOT NULL CHECK (json_valid(metrics)),
    at TEXT NOT NULL,
    PRIMARY KEY (night, step)
) STRICT;
INSERT INTO "night_steps" VALUES(1,1,'{"loss": 0.69}','2026-11-05T10:00:00.000+00:00');
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
, verdict TEXT CHECK (verdict IN ('promoted', 'candidate', 'refused'))) STRICT;
INSERT INTO "nights" VALUES(1,'done',7,'auto','{}','{"comparison": 1}','dddddddddddddddddddddddddddddddddddddddddddddddddddddddddddddddd','done',0,0,NULL,'night-0001','trained','2026-11-05T10:00:00.000+00:00','2026-11-05T10:00:00.000+00:00','2026-11-05T10:00:00.000+00:00',NULL);
CREATE TABLE occurrences (
    id INTEGER PRIMARY KEY,
    cause TEXT NOT NULL CHECK (cause IN ('clock', 'feedback')),
    due TEXT NOT NULL,  
    outcome TEXT NOT NULL CHECK (outcome IN ('started', 'skipped')),
    reason TEXT NOT NULL,
    night INTEGER REFERENCES nights (id),
    at TEXT NOT NULL,
    UNIQUE (cause, due)
) STRICT;
INSERT INTO "occurrences" VALUES(1,'clock','2026-11-05T10:00:00.000+00:00','started','due',1,'2026-11-05T10:00:00.000+00:00');
CREATE TABLE pairs (
    seq INTEGER PRIMARY KEY AUTOINCREMENT,
    id TEXT NOT NULL UNIQUE,
    parent TEXT NOT NULL REFERENCES messages (id),
    left_reply TEXT NOT NULL UNIQUE REFERENCES messages (id),
    right_reply TEXT NOT NULL UNIQUE REFERENCES messages (id),
    asked TEXT NOT NULL CHECK (asked IN ('share', 'demand', 'api')),
    shown_at TEXT NOT NULL
) STRICT;
INSERT INTO "pairs" VALUES(1,'p000000000000001','m000000000000001','l000000000000001','r000000000000001','share','2026-11-01T10:00:00.000+00:00');
INSERT INTO "pairs" VALUES(2,'p000000000000002','m000000000000002','l000000000000002','r000000000000002','share','2026-11-01T10:00:00.000+00:00');
CREATE TABLE promotions (
    id INTEGER PRIMARY KEY,
    adapter TEXT REFERENCES adapters (id),  
    user INTEGER REFERENCES users (id),     
    reason TEXT NOT NULL,
    proof TEXT NOT NULL CHECK (json_valid(proof)),
    at TEXT NOT NULL
) STRICT;
INSERT INTO "promotions" VALUES(1,'night-0001',1,'by hand','{}','2026-11-05T10:00:00.000+00:00');
CREATE TABLE questions (
    seq INTEGER PRIMARY KEY,
    id TEXT NOT NULL UNIQUE,
    user INTEGER NOT NULL REFERENCES users (id),
    kind TEXT NOT NULL CHECK (kind IN ('comparison', 'ranking')),
    parent TEXT NOT NULL REFERENCES messages (id),
    replies TEXT NOT NULL CHECK (json_valid(replies)),  
    why TEXT NOT NULL,
    propensity REAL NOT NULL CHECK (propensity > 0 AND propensity <= 1),
    asked_at TEXT NOT NULL,
    answered_at TEXT
) STRICT;
INSERT INTO "questions" VALUES(1,'q000000000000001',1,'comparison','m000000000000001','["r000000000000001", "l000000000000001"]','teaches',0.25,'2026-11-06T10:00:00.000+00:00','2026-11-06T10:00:00.000+00:00');
INSERT INTO "questions" VALUES(2,'q000000000000002',2,'comparison','m000000000000001','["l000000000000001", "r000000000000001"]','even',1.0,'2026-11-06T10:00:00.000+00:00',NULL);
CREATE TABLE rankings (
    id INTEGER PRIMARY KEY,
    user INTEGER NOT NULL REFERENCES users (id),
    parent TEXT NOT NULL REFERENCES messages (id),
    replies TEXT NOT NULL CHECK (json_valid(replies)),
    ranks TEXT NOT NULL CHECK (json_valid(ranks)),  
    at TEXT NOT NULL
, all_wrong INTEGER NOT NULL DEFAULT 0 CHECK (all_wrong IN (0, 1)), taken_back INTEGER NOT NULL DEFAULT 0 CHECK (taken_back IN (0, 1)), question TEXT REFERENCES questions (id)) STRICT;
INSERT INTO "rankings" VALUES(1,1,'m000000000000001','["l000000000000001", "r000000000000001"]','[1, 2]','2026-11-04T10:00:00.000+00:00',0,0,NULL);
INSERT INTO "rankings" VALUES(2,2,'m000000000000002','["l000000000000002", "r000000000000002"]','[1, 2]','2026-11-04T10:00:00.000+00:00',0,0,NULL);
CREATE TABLE reference_logprobs (  
    reply_sha256 TEXT NOT NULL,  
    reference TEXT NOT NULL,     
    template_sha256 TEXT NOT NULL,
    logprobs BLOB NOT NULL,      
    PRIMARY KEY (reply_sha256, reference, template_sha256)
) STRICT;
INSERT INTO "reference_logprobs" VALUES('ffffffffffffffffffffffffffffffffffffffffffffffffffffffffffffffff','bbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbb float32','tttttttttttttttttttttttttttttttttttttttttttttttttttttttttttttttt',X'000080BF000000C0');
CREATE TABLE replies (
    message TEXT PRIMARY KEY REFERENCES messages (id),
    adapter TEXT REFERENCES adapters (id),  
    base_sha256 TEXT,
    template_sha256 TEXT,
    sampling TEXT NOT NULL CHECK (json_valid(sampling)),
    token_ids BLOB,          
    logprobs BLOB,           
    sampled_logprobs BLOB,   
    finish TEXT NOT NULL CHECK (finish IN ('stop', 'length', 'cancelled')),
    first_token_s REAL,
    total_s REAL
) STRICT;
INSERT INTO "replies" VALUES('l000000000000001',NULL,'bbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbb','tttttttttttttttttttttttttttttttttttttttttttttttttttttttttttttttt','{"temperature": 0.7}',X'0500000002000000',X'000000BF000080BE',NULL,'stop',NULL,0.5);
INSERT INTO "replies" VALUES('r000000000000001',NULL,'bbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbb','tttttttttttttttttttttttttttttttttttttttttttttttttttttttttttttttt','{"temperature": 0.7}',X'0500000002000000',X'000000BF000080BE',NULL,'stop',NULL,0.5);
INSERT INTO "replies" VALUES('l000000000000002',NULL,'bbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbb','tttttttttttttttttttttttttttttttttttttttttttttttttttttttttttttttt','{"temperature": 0.7}',X'0500000002000000',X'000000BF000080BE',NULL,'stop',NULL,0.5);
INSERT INTO "replies" VALUES('r000000000000002',NULL,'bbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbb','tttttttttttttttttttttttttttttttttttttttttttttttttttttttttttttttt','{"temperature": 0.7}',X'0500000002000000',X'000000BF000080BE',NULL,'stop',NULL,0.5);
CREATE TABLE retrains (
    adapter TEXT NOT NULL REFERENCES adapters (id),
    user INTEGER NOT NULL REFERENCES users (id),  
    at TEXT NOT NULL,
    PRIMARY KEY (adapter, user)
) STRICT;
INSERT INTO "retrains" VALUES('night-0001',3,'2026-11-06T10:00:00.000+00:00');
CREATE TABLE reward_scores (
    reply TEXT PRIMARY KEY REFERENCES replies (message),
    mean REAL NOT NULL,       
    deviation REAL NOT NULL,  
    at TEXT NOT NULL
) STRICT;
INSERT INTO "reward_scores" VALUES('l000000000000001',0.5,0.25,'2026-11-06T10:00:00.000+00:00');
CREATE TABLE schedules (
    id INTEGER PRIMARY KEY,
    user INTEGER REFERENCES users (id),
    cron TEXT NOT NULL,
    time_zone TEXT NOT NULL,
    enabled INTEGER NOT NULL CHECK (enabled IN (0, 1)),
    at TEXT NOT NULL
, grace_minutes INTEGER NOT NULL DEFAULT 60 CHECK (grace_minutes >= 0), every_new INTEGER CHECK (every_new > 0)) STRICT;
INSERT INTO "schedules" VALUES(1,1,'0 3 * * *','Europe/Berlin',1,'2026-11-05T10:00:00.000+00:00',60,NULL);
CREATE TABLE sessions (
    id INTEGER PRIMARY KEY,
    user INTEGER NOT NULL REFERENCES users (id),
    sha256 TEXT NOT NULL UNIQUE,  
    address TEXT NOT NULL,
    agent TEXT NOT NULL,          
    made_at TEXT NOT NULL,
    seen_at TEXT NOT NULL,        
    ended_at TEXT
) STRICT;
INSERT INTO "sessions" VALUES(1,1,'5555555555555555555555555555555555555555555555555555555555555555','127.0.0.1','Firefox on Linux','2026-11-28T17:00:00.000+00:00','2026-11-28T17:05:00.000+00:00',NULL);
CREATE TABLE settings (
    id INTEGER PRIMARY KEY,
    user INTEGER REFERENCES users (id),
    name TEXT NOT NULL,
    value TEXT NOT NULL CHECK (json_valid(value)),
    at TEXT NOT NULL
) STRICT;
INSERT INTO "settings" VALUES(1,1,'side_by_side_share','0.3','2026-11-05T10:00:00.000+00:00');
CREATE TABLE signals (
    id INTEGER PRIMARY KEY,
    user INTEGER NOT NULL REFERENCES users (id),
    reply TEXT NOT NULL REFERENCES replies (message),
    kind TEXT NOT NULL CHECK (kind IN ('retry', 'edit', 'copy', 'abandon')),
    at TEXT NOT NULL
) STRICT;
INSERT INTO "signals" VALUES(1,1,'r000000000000001','retry','2026-11-06T10:00:00.000+00:00');
CREATE TABLE split_openings (  
    opening TEXT PRIMARY KEY,  
    part TEXT NOT NULL CHECK (part IN ('training', 'stopping', 'held_out'))
) STRICT;
INSERT INTO "split_openings" VALUES('6dae9edc0e3dc75027f34c6178ab990ef9eac14871c0c42adc27dc1d7d307284','training');
INSERT INTO "split_openings" VALUES('be2beb7fcb147958ce3b0606c648530cf4298cbb467546424825d9c40513a111','training');
CREATE TABLE split_people (
    user INTEGER PRIMARY KEY REFERENCES users (id),
    held_out INTEGER NOT NULL CHECK (held_out IN (0, 1)),  
    at TEXT NOT NULL
) STRICT;
INSERT INTO "split_people" VALUES(2,1,'2026-11-05T10:00:00.000+00:00');
CREATE TABLE split_secret (
    id INTEGER PRIMARY KEY CHECK (id = 1),
    secret TEXT NOT NULL  
) STRICT;
INSERT INTO "split_secret" VALUES(1,'0ac11345a3f60c7b9820f6753bc9ba61512df247550bf4fb43b017d22e7cf4f3');
CREATE TABLE tokens (
    id INTEGER PRIMARY KEY,
    user INTEGER NOT NULL REFERENCES users (id),
    name TEXT NOT NULL,
    sha256 TEXT NOT NULL UNIQUE,  
    created_at TEXT NOT NULL,
    revoked_at TEXT
) STRICT;
INSERT INTO "tokens" VALUES(1,2,'api','5555555555555555555555555555555555555555555555555555555555555555','2026-11-01T10:00:00.000+00:00',NULL);
CREATE TABLE users (
    id INTEGER PRIMARY KEY,
    name TEXT NOT NULL UNIQUE COLLATE NOCASE,
    role TEXT NOT NULL CHECK (role IN ('chatter', 'rater', 'operator')),
    password_hash TEXT,  
    created_at TEXT NOT NULL
, kind TEXT NOT NULL DEFAULT 'person'
    CHECK (kind IN ('person', 'anonymous', 'model', 'imported')), forgotten_at TEXT, disabled_at TEXT) STRICT;
INSERT INTO "users" VALUES(1,'owner','operator',NULL,'2026-11-01T10:00:00.000+00:00','person',NULL,NULL);
INSERT INTO "users" VALUES(2,'ada','rater','$argon2id$v=19$m=65536,t=3,p=4$c2FsdA$aGFzaA','2026-11-01T10:00:00.000+00:00','person',NULL,NULL);
INSERT INTO "users" VALUES(3,'forgotten 3','rater',NULL,'2026-11-01T10:00:00.000+00:00','person','2026-11-06T10:00:00.000+00:00',NULL);
CREATE TABLE votes (
    id INTEGER PRIMARY KEY,
    user INTEGER NOT NULL REFERENCES users (id),
    reply TEXT NOT NULL REFERENCES replies (message),
    value INTEGER NOT NULL CHECK (value IN (-1, 0, 1)),
    reasons TEXT NOT NULL DEFAULT '[]' CHECK (json_valid(reasons)),
    words TEXT NOT NULL DEFAULT '',
    at TEXT NOT NULL
) STRICT;
INSERT INTO "votes" VALUES(1,1,'r000000000000001',-1,'["untrue"]','no such thing','2026-11-02T10:00:00.000+00:00');
INSERT INTO "votes" VALUES(2,1,'l000000000000001',1,'[]','','2026-11-02T10:00:00.000+00:00');
INSERT INTO "votes" VALUES(3,2,'r000000000000002',-1,'["untrue"]','no such thing','2026-11-02T10:00:00.000+00:00');
INSERT INTO "votes" VALUES(4,2,'l000000000000002',1,'[]','','2026-11-02T10:00:00.000+00:00');
CREATE UNIQUE INDEX "idx__sqlite_migrations_migration_set_name"
    ON "_sqlite_migrations" ("migration_set", "name");
CREATE INDEX consents_by_user ON consents (user, id);
CREATE INDEX conversations_by_user ON conversations (user, seq);
CREATE INDEX messages_by_conversation ON messages (conversation, seq);
CREATE INDEX messages_by_parent ON messages (parent);
CREATE INDEX replies_by_adapter ON replies (adapter);
CREATE INDEX votes_by_reply ON votes (reply, user, id);
CREATE INDEX rankings_by_parent ON rankings (parent, user, id);
CREATE INDEX corrections_by_reply ON corrections (reply, user, id);
CREATE INDEX critiques_by_reply ON critiques (reply, user, id);
CREATE INDEX settings_by_name ON settings (name, id);
CREATE INDEX conversation_consents_by_conversation ON conversation_consents (conversation, id);
CREATE INDEX questions_by_parent ON questions (parent, user);
CREATE INDEX questions_by_user ON questions (user, answered_at);
CREATE INDEX comparisons_by_replies ON comparisons (left_reply, right_reply, user, id);
CREATE INDEX comparisons_by_right ON comparisons (right_reply, left_reply, user, id);
CREATE INDEX labels_by_reply ON labels (reply, user, label, id);
CREATE INDEX signals_by_reply ON signals (reply, user, id);
CREATE INDEX votes_by_time ON votes (at, value);
CREATE INDEX comparisons_by_time ON comparisons (at, choice);
CREATE INDEX rankings_by_time ON rankings (at);
CREATE INDEX corrections_by_time ON corrections (at);
CREATE INDEX critiques_by_time ON critiques (at);
CREATE INDEX imported_rows_by_conversation ON imported_rows (conversation);
CREATE INDEX sessions_by_user ON sessions (user, id);
CREATE INDEX votes_by_user ON votes (user, at);
CREATE INDEX comparisons_by_user ON comparisons (user, at);
CREATE INDEX rankings_by_user ON rankings (user, at);
CREATE INDEX corrections_by_user ON corrections (user, at);
CREATE INDEX critiques_by_user ON critiques (user, at);
CREATE INDEX labels_by_user ON labels (user, at);
DELETE FROM "sqlite_sequence";
INSERT INTO "sqlite_sequence" VALUES('conversations',2);
INSERT INTO "sqlite_sequence" VALUES('messages',6);
INSERT INTO "sqlite_sequence" VALUES('pairs',2);
INSERT INTO "sqlite_sequence" VALUES('nights',1);
COMMIT;
