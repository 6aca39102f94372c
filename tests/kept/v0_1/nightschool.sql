BEGIN TRANSACTION;
CREATE TABLE "_sqlite_migrations" (
   "id" INTEGER PRIMARY KEY,
   "migration_set" TEXT,
   "name" TEXT,
   "applied_at" TEXT
);
INSERT INTO "_sqlite_migrations" VALUES(1,'nightschool','m0001_first_tables','2026-11-29 13:26:14.904871+00:00');
INSERT INTO "_sqlite_migrations" VALUES(2,'nightschool','m0002_clock_and_gate','2026-11-29 13:26:14.907954+00:00');
INSERT INTO "_sqlite_migrations" VALUES(3,'nightschool','m0003_all_that_is_said','2026-11-29 13:26:14.916879+00:00');
INSERT INTO "_sqlite_migrations" VALUES(4,'nightschool','m0004_reference_logprobs','2026-11-29 13:26:14.919151+00:00');
INSERT INTO "_sqlite_migrations" VALUES(5,'nightschool','m0005_whose_conversations','2026-11-29 13:26:14.920740+00:00');
INSERT INTO "_sqlite_migrations" VALUES(6,'nightschool','m0006_sessions','2026-11-29 13:26:14.922197+00:00');
INSERT INTO "_sqlite_migrations" VALUES(7,'nightschool','m0007_split_openings','2026-11-29 13:26:14.923579+00:00');
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
INSERT INTO "adapters" VALUES('night-0001',NULL,1,'auto','593ec7fa49461b2ae5046da51d1381dda863792d8b5509691f661540c2ad2442','8cf92b24c5b96cce39d0cd9798e04ecd748ed0369f4d6c5492baee5da9c97e31','candidate','not judged; trained on 4 comparisons, 1 correction, 1 thumbs up, 1 thumbs down','2026-11-29T13:26:35.032+00:00','{}');
INSERT INTO "adapters" VALUES('night-0002',NULL,2,'sft','593ec7fa49461b2ae5046da51d1381dda863792d8b5509691f661540c2ad2442','2c013024ad9f25c85e62383500da28382b9c0608c04d6c78d52e5ce6f5c82eeb','candidate','not judged; trained on 1 correction, 1 demonstration (left out: not used by sft: 6)','2026-11-29T13:26:49.328+00:00','{}');
CREATE TABLE answered_requests (
    user INTEGER NOT NULL REFERENCES users (id),
    key TEXT NOT NULL,
    request_sha256 TEXT NOT NULL,
    answer TEXT NOT NULL CHECK (json_valid(answer)),
    at TEXT NOT NULL,
    PRIMARY KEY (user, key)
) STRICT;
CREATE TABLE audit (
    id INTEGER PRIMARY KEY,
    user INTEGER REFERENCES users (id),
    action TEXT NOT NULL,
    subject TEXT NOT NULL,
    detail TEXT NOT NULL DEFAULT '{}' CHECK (json_valid(detail)),
    at TEXT NOT NULL
) STRICT;
INSERT INTO "audit" VALUES(1,NULL,'start night','1','{"method": "auto", "gate": "off", "settings": "rank=2, alpha=4, looks=1, longest=512, epochs=1, least_steps=4", "terminal": "root"}','2026-11-29T13:26:32.546+00:00');
INSERT INTO "audit" VALUES(2,NULL,'promote','night-0001','{"reason": "the gate is off"}','2026-11-29T13:26:35.034+00:00');
INSERT INTO "audit" VALUES(3,NULL,'start night','2','{"method": "sft", "again": true, "gate": "off", "settings": "rank=2, alpha=4, looks=1, longest=512, epochs=1, least_steps=4", "terminal": "root"}','2026-11-29T13:26:46.773+00:00');
INSERT INTO "audit" VALUES(4,NULL,'promote','night-0002','{"reason": "the gate is off"}','2026-11-29T13:26:49.329+00:00');
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
INSERT INTO "comparisons" VALUES(1,1,'fca5dea78810f06a','f2cc3e1efda27f6e','right',NULL,'','2026-11-29T13:26:14.933+00:00','[]',NULL,NULL);
INSERT INTO "comparisons" VALUES(2,1,'12150aab6d1a477c','add6b366cc13cc25','right',NULL,'','2026-11-29T13:26:14.938+00:00','[]',NULL,NULL);
INSERT INTO "comparisons" VALUES(3,1,'7c43900272b7c4b5','53b58d1ab8ef70f4','right',NULL,'','2026-11-29T13:26:14.943+00:00','[]',NULL,NULL);
INSERT INTO "comparisons" VALUES(4,1,'9eaf50e13bfdab5a','20d5f3353178db1a','right',NULL,'','2026-11-29T13:26:14.947+00:00','[]',NULL,NULL);
CREATE TABLE consents (
    id INTEGER PRIMARY KEY,
    user INTEGER NOT NULL REFERENCES users (id),
    given INTEGER NOT NULL CHECK (given IN (0, 1)),
    at TEXT NOT NULL
) STRICT;
INSERT INTO "consents" VALUES(1,1,1,'2026-11-29T13:26:14.926+00:00');
CREATE TABLE conversation_consents (
    id INTEGER PRIMARY KEY,
    conversation TEXT NOT NULL REFERENCES conversations (id),
    user INTEGER NOT NULL REFERENCES users (id),
    given INTEGER NOT NULL CHECK (given IN (0, 1)),
    at TEXT NOT NULL
) STRICT;
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
INSERT INTO "conversations" VALUES(1,'8aae590b88378ff0',1,'chat','Name a colour.','f2cc3e1efda27f6e','2026-11-29T13:26:14.927+00:00',NULL);
INSERT INTO "conversations" VALUES(2,'c131dc5e61b4f02f',1,'chat','What is two and two?','add6b366cc13cc25','2026-11-29T13:26:14.935+00:00',NULL);
INSERT INTO "conversations" VALUES(3,'06daeb076f4bc4e4',1,'chat','Say hello to my cat.','53b58d1ab8ef70f4','2026-11-29T13:26:14.940+00:00',NULL);
INSERT INTO "conversations" VALUES(4,'8ebd695a03f67c8f',1,'chat','Name a fruit.','20d5f3353178db1a','2026-11-29T13:26:14.944+00:00',NULL);
INSERT INTO "conversations" VALUES(5,'33bb84fc2b5ad524',1,'chat','Is iron heavy?','8a29e94a790d9094','2026-11-29T13:26:14.948+00:00',NULL);
CREATE TABLE corrections (
    id INTEGER PRIMARY KEY,
    user INTEGER NOT NULL REFERENCES users (id),
    reply TEXT NOT NULL REFERENCES replies (message),
    text TEXT NOT NULL,  
    at TEXT NOT NULL
) STRICT;
INSERT INTO "corrections" VALUES(1,1,'1f960615a2d603d2','Yes, as heavy as can be.','2026-11-29T13:26:14.951+00:00');
CREATE TABLE critiques (
    id INTEGER PRIMARY KEY,
    user INTEGER NOT NULL REFERENCES users (id),
    reply TEXT NOT NULL REFERENCES replies (message),
    text TEXT NOT NULL,  
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
CREATE TABLE imported_rows (
    import INTEGER NOT NULL REFERENCES imports (id),
    row INTEGER NOT NULL,
    conversation TEXT NOT NULL REFERENCES conversations (id),
    extra TEXT NOT NULL DEFAULT '{}' CHECK (json_valid(extra)),  
    PRIMARY KEY (import, row)
) STRICT;
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
CREATE TABLE labels (
    id INTEGER PRIMARY KEY,
    user INTEGER NOT NULL REFERENCES users (id),
    reply TEXT NOT NULL REFERENCES replies (message),
    label TEXT NOT NULL,
    given INTEGER NOT NULL CHECK (given IN (0, 1)),  
    words TEXT NOT NULL DEFAULT '',
    at TEXT NOT NULL
) STRICT;
CREATE TABLE messages (
    seq INTEGER PRIMARY KEY AUTOINCREMENT,
    id TEXT NOT NULL UNIQUE,
    conversation TEXT NOT NULL REFERENCES conversations (id),
    parent TEXT REFERENCES messages (id),
    role TEXT NOT NULL CHECK (role IN ('system', 'user', 'assistant')),
    content TEXT NOT NULL,
    created_at TEXT NOT NULL
) STRICT;
INSERT INTO "messages" VALUES(1,'46059bf6181176bf','8aae590b88378ff0',NULL,'user','Name a colour.','2026-11-29T13:26:14.927+00:00');
INSERT INTO "messages" VALUES(2,'fca5dea78810f06a','8aae590b88378ff0','46059bf6181176bf','assistant','I cannot help with that.','2026-11-29T13:26:14.930+00:00');
INSERT INTO "messages" VALUES(3,'f2cc3e1efda27f6e','8aae590b88378ff0','46059bf6181176bf','assistant','Blue, like the sea.','2026-11-29T13:26:14.932+00:00');
INSERT INTO "messages" VALUES(4,'6f5c3ac1d8e4d96d','c131dc5e61b4f02f',NULL,'user','What is two and two?','2026-11-29T13:26:14.934+00:00');
INSERT INTO "messages" VALUES(5,'12150aab6d1a477c','c131dc5e61b4f02f','6f5c3ac1d8e4d96d','assistant','It depends.','2026-11-29T13:26:14.935+00:00');
INSERT INTO "messages" VALUES(6,'add6b366cc13cc25','c131dc5e61b4f02f','6f5c3ac1d8e4d96d','assistant','Four!','2026-11-29T13:26:14.937+00:00');
INSERT INTO "messages" VALUES(7,'35100e1de6dcbd2d','06daeb076f4bc4e4',NULL,'user','Say hello to my cat.','2026-11-29T13:26:14.940+00:00');
INSERT INTO "messages" VALUES(8,'7c43900272b7c4b5','06daeb076f4bc4e4','35100e1de6dcbd2d','assistant','Cats cannot read.','2026-11-29T13:26:14.940+00:00');
INSERT INTO "messages" VALUES(9,'53b58d1ab8ef70f4','06daeb076f4bc4e4','35100e1de6dcbd2d','assistant','Hello, little cat!','2026-11-29T13:26:14.941+00:00');
INSERT INTO "messages" VALUES(10,'bb53d2fb54de8ccf','8ebd695a03f67c8f',NULL,'user','Name a fruit.','2026-11-29T13:26:14.944+00:00');
INSERT INTO "messages" VALUES(11,'9eaf50e13bfdab5a','8ebd695a03f67c8f','bb53d2fb54de8ccf','assistant','Fruit.','2026-11-29T13:26:14.945+00:00');
INSERT INTO "messages" VALUES(12,'20d5f3353178db1a','8ebd695a03f67c8f','bb53d2fb54de8ccf','assistant','An apple.','2026-11-29T13:26:14.945+00:00');
INSERT INTO "messages" VALUES(13,'dd8607036eed97f0','33bb84fc2b5ad524',NULL,'user','Is iron heavy?','2026-11-29T13:26:14.948+00:00');
INSERT INTO "messages" VALUES(14,'1f960615a2d603d2','33bb84fc2b5ad524','dd8607036eed97f0','assistant','No.','2026-11-29T13:26:14.949+00:00');
INSERT INTO "messages" VALUES(15,'8a29e94a790d9094','33bb84fc2b5ad524','dd8607036eed97f0','assistant','Yes, as heavy as can be.','2026-11-29T13:26:14.950+00:00');
CREATE TABLE night_people (
    night INTEGER NOT NULL REFERENCES nights (id),
    user INTEGER NOT NULL REFERENCES users (id),
    examples INTEGER NOT NULL, complete INTEGER NOT NULL DEFAULT 0 CHECK (complete IN (0, 1)),
    PRIMARY KEY (night, user)
) STRICT;
INSERT INTO "night_people" VALUES(1,1,7,1);
INSERT INTO "night_people" VALUES(2,1,2,1);
CREATE TABLE night_steps (
    night INTEGER NOT NULL REFERENCES nights (id),
    step INTEGER NOT NULL,
    metrics TEXT NOT NULL CHECK (json_valid(metrics)),
    at TEXT NOT NULL,
    PRIMARY KEY (night, step)
) STRICT;
INSERT INTO "night_steps" VALUES(1,1,'{"chosen_logprob": -88.82450485229492, "rejected_logprob": -97.31426111857097, "loss": 0.6379622731889997, "margin": 0.0, "accuracy": 0.0, "kl_per_token": 8.135687039612094e-07, "gradient_norm": 0.10988539457321167, "tokens_per_s": 6320.70611421304, "memory_gib": 0.5333175659179688}','2026-11-29T13:26:32.967+00:00');
INSERT INTO "night_steps" VALUES(1,2,'{"chosen_logprob": -88.80686696370442, "rejected_logprob": -97.33359146118164, "loss": 0.6376805050032479, "margin": 0.0006337410928348877, "accuracy": 1.0, "kl_per_token": 7.27910946807242e-06, "gradient_norm": 0.10979010164737701, "tokens_per_s": 9452.160768545426, "memory_gib": 0.5334396362304688}','2026-11-29T13:26:33.013+00:00');
INSERT INTO "night_steps" VALUES(1,3,'{"chosen_logprob": -88.77136166890462, "rejected_logprob": -97.37243366241455, "loss": 0.6371141927582877, "margin": 0.0019082695611619524, "accuracy": 1.0, "kl_per_token": 2.9372140488703735e-05, "gradient_norm": 0.10997723788022995, "tokens_per_s": 9599.209513046071, "memory_gib": 0.5334396362304688}','2026-11-29T13:26:33.059+00:00');
INSERT INTO "night_steps" VALUES(1,4,'{"chosen_logprob": -88.71748733520508, "rejected_logprob": -97.43116092681885, "loss": 0.63625739301954, "margin": 0.0038385826462347594, "accuracy": 1.0, "kl_per_token": 8.27018593554385e-05, "gradient_norm": 0.11029273271560669, "tokens_per_s": 9528.194521546087, "memory_gib": 0.5334396362304688}','2026-11-29T13:26:33.105+00:00');
INSERT INTO "night_steps" VALUES(2,1,'{"loss": 6.204516410827637, "kl_per_token": 2.5072799303416105e-07, "gradient_norm": 1.165890097618103, "tokens_per_s": 920.0490684156978, "memory_gib": 0.5330581665039062}','2026-11-29T13:26:47.223+00:00');
INSERT INTO "night_steps" VALUES(2,2,'{"loss": 6.203372955322266, "kl_per_token": 2.0385862171679037e-06, "gradient_norm": 1.1661309003829956, "tokens_per_s": 2986.193642823339, "memory_gib": 0.5330581665039062}','2026-11-29T13:26:47.251+00:00');
INSERT INTO "night_steps" VALUES(2,3,'{"loss": 6.201080322265625, "kl_per_token": 8.203721336030867e-06, "gradient_norm": 1.1685154438018799, "tokens_per_s": 2407.776853503327, "memory_gib": 0.5330581665039062}','2026-11-29T13:26:47.281+00:00');
INSERT INTO "night_steps" VALUES(2,4,'{"loss": 6.197623252868652, "kl_per_token": 2.2988415366853587e-05, "gradient_norm": 1.1722781658172607, "tokens_per_s": 1609.6114450474056, "memory_gib": 0.5330581665039062}','2026-11-29T13:26:47.323+00:00');
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
INSERT INTO "nights" VALUES(1,'done',28762,'auto','{"comparison_weight": 1.0, "ranking_weight": 1.0, "correction_weight": 1.0, "thumb_weight": 1.0, "beta": 0.02, "loss": "sigmoid", "label_smoothing": 0.0, "per_token": 0, "sft_weight": 0.0, "learning_rate": 0.0005, "epochs": 1, "patience": 4, "least_steps": 4, "batch_size": 8, "rank": 2, "alpha": 4, "kl_budget": 0.3, "looks": 1, "longest": 512, "checkpoint_every": 10, "seed": 0, "model": "kept", "base_sha256": "593ec7fa49461b2ae5046da51d1381dda863792d8b5509691f661540c2ad2442"}','{"comparison": 4, "correction": 1, "thumbs_up": 1, "thumbs_down": 1, "left_out": {}}','2c0407e4e9cb1acb08a4dab4957992eddbe8eaa3d29ba70ab0c26b4b0bfeb811','done',4,4,NULL,'night-0001','not judged; trained on 4 comparisons, 1 correction, 1 thumbs up, 1 thumbs down','2026-11-29T13:26:32.145+00:00','2026-11-29T13:26:35.034+00:00','2026-11-29T13:26:35.034+00:00',NULL);
INSERT INTO "nights" VALUES(2,'done',28816,'sft','{"learning_rate": 0.0002, "epochs": 1, "patience": 4, "least_steps": 4, "batch_size": 8, "rank": 2, "alpha": 4, "kl_budget": 0.3, "looks": 1, "longest": 512, "checkpoint_every": 10, "seed": 0, "model": "kept", "base_sha256": "593ec7fa49461b2ae5046da51d1381dda863792d8b5509691f661540c2ad2442"}','{"correction": 1, "demonstration": 1, "thumbs_up": 0, "thumbs_down": 0, "left_out": {"not used by sft": 6}}','bc3ab41de5fb77978dd2194519b90ea8dc3726a6ed540a94fd9e8118e1f850f2','done',4,4,NULL,'night-0002','not judged; trained on 1 correction, 1 demonstration (left out: not used by sft: 6)','2026-11-29T13:26:45.809+00:00','2026-11-29T13:26:49.329+00:00','2026-11-29T13:26:49.329+00:00',NULL);
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
CREATE TABLE pairs (
    seq INTEGER PRIMARY KEY AUTOINCREMENT,
    id TEXT NOT NULL UNIQUE,
    parent TEXT NOT NULL REFERENCES messages (id),
    left_reply TEXT NOT NULL UNIQUE REFERENCES messages (id),
    right_reply TEXT NOT NULL UNIQUE REFERENCES messages (id),
    asked TEXT NOT NULL CHECK (asked IN ('share', 'demand', 'api')),
    shown_at TEXT NOT NULL
) STRICT;
CREATE TABLE promotions (
    id INTEGER PRIMARY KEY,
    adapter TEXT REFERENCES adapters (id),  
    user INTEGER REFERENCES users (id),     
    reason TEXT NOT NULL,
    proof TEXT NOT NULL CHECK (json_valid(proof)),
    at TEXT NOT NULL
) STRICT;
INSERT INTO "promotions" VALUES(1,'night-0001',NULL,'the gate is off','{"from_trainer": 8.467534227318925e-07, "from_base": 0.01362734346511786, "share": 0.9999970763234927, "share_error": 5.322293207998081e-06, "tolerance": 0.002}','2026-11-29T13:26:35.033+00:00');
INSERT INTO "promotions" VALUES(2,'night-0002',NULL,'the gate is off','{"from_trainer": 7.893846124795756e-07, "from_base": 0.0053405472406912995, "share": 0.9999876671560939, "share_error": 1.3580394549225307e-05, "tolerance": 0.002}','2026-11-29T13:26:49.329+00:00');
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
CREATE TABLE rankings (
    id INTEGER PRIMARY KEY,
    user INTEGER NOT NULL REFERENCES users (id),
    parent TEXT NOT NULL REFERENCES messages (id),
    replies TEXT NOT NULL CHECK (json_valid(replies)),
    ranks TEXT NOT NULL CHECK (json_valid(ranks)),  
    at TEXT NOT NULL
, all_wrong INTEGER NOT NULL DEFAULT 0 CHECK (all_wrong IN (0, 1)), taken_back INTEGER NOT NULL DEFAULT 0 CHECK (taken_back IN (0, 1)), question TEXT REFERENCES questions (id)) STRICT;
CREATE TABLE reference_logprobs (  
    reply_sha256 TEXT NOT NULL,  
    reference TEXT NOT NULL,     
    template_sha256 TEXT NOT NULL,
    logprobs BLOB NOT NULL,      
    PRIMARY KEY (reply_sha256, reference, template_sha256)
) STRICT;
INSERT INTO "reference_logprobs" VALUES('426bc801a3ea34decaa6e492b936533d90f69ceec26efdc64272f0ecb9b8c903','593ec7fa49461b2ae5046da51d1381dda863792d8b5509691f661540c2ad2442 float32','449a0998755bc854aa867e690eea98acf22d1c03a0d8e3d19e72632349575c49',X'6115E6C04EC4D0C0A7ADAEC03A6ACCC0FA63B5C08F549AC0E892DAC06907DAC08B308EC08033B6C0253D96C04BD6C2C01584B9C09DB0B0C020DCA3C02EB2DFC0B5F8E3C0F2E9BDC0ACCF95C085D3E4C0CD35EEC03908ECC0C361EEC03A02FBC036F6C1C0');
INSERT INTO "reference_logprobs" VALUES('802a93212db58b123a5a0bc6f719aa0fd8af424b25fb988692eb4663ebcd4ae0','593ec7fa49461b2ae5046da51d1381dda863792d8b5509691f661540c2ad2442 float32','449a0998755bc854aa867e690eea98acf22d1c03a0d8e3d19e72632349575c49',X'2B5AE3C0850104C1F1D500C15A8EC9C0');
INSERT INTO "reference_logprobs" VALUES('2d7e327ad759f7c64c60aca5da5091a62acdabb329996e3ed88183070ea43e5d','593ec7fa49461b2ae5046da51d1381dda863792d8b5509691f661540c2ad2442 float32','449a0998755bc854aa867e690eea98acf22d1c03a0d8e3d19e72632349575c49',X'0B9582C06B529AC0C61DEBC0E964CFC0DF32E9C0697BCBC00788C5C066D9E4C0AADFAAC04128CAC03821D5C06BCCEEC0F1F7C3C0CA2BC5C0E33FEEC0D381EDC04FC3ADC029A7AAC08257FDC07456C6C0');
INSERT INTO "reference_logprobs" VALUES('71de794b5369a2ea91f98d2653def617408cd17f79e41fb641672297cd73ca48','593ec7fa49461b2ae5046da51d1381dda863792d8b5509691f661540c2ad2442 float32','449a0998755bc854aa867e690eea98acf22d1c03a0d8e3d19e72632349575c49',X'53F0D5C0724AEAC035C3BAC0EDAE9FC06664D7C099BDBBC08D929DC0088D07C17807D5C0898780C0B2D1B4C0CBC3C3C067EBC3C0E744D5C0D18F86C07887CDC02A8AF6C0162EA1C00D12BEC09A88F8C0EABE96C0B941D5C047AADFC0C89BFCC04705C8C0');
INSERT INTO "reference_logprobs" VALUES('183917884215d3241d4429d844bcb1bf2a582223b01d40624e810cb857b5e87b','593ec7fa49461b2ae5046da51d1381dda863792d8b5509691f661540c2ad2442 float32','449a0998755bc854aa867e690eea98acf22d1c03a0d8e3d19e72632349575c49',X'7F35B9C08D42ADC08E30FBC0489B7CC058F4DCC06455B8C07A5EC6C07629D0C0E278E0C05665C6C0');
INSERT INTO "reference_logprobs" VALUES('5c82f263b1f33cdfde7f5e197ad44e79dfcdedec9e81a0e0fc3387f44130efe5','593ec7fa49461b2ae5046da51d1381dda863792d8b5509691f661540c2ad2442 float32','449a0998755bc854aa867e690eea98acf22d1c03a0d8e3d19e72632349575c49',X'2AB70BC18C16A5C0F492F3C00C5BF3C06B54EEC01406DFC09ABCC7C0');
INSERT INTO "reference_logprobs" VALUES('796bb779e5d1ae084900bdff470a6196c896d6c69f3874f8528983fdcd20ad8c','593ec7fa49461b2ae5046da51d1381dda863792d8b5509691f661540c2ad2442 float32','449a0998755bc854aa867e690eea98acf22d1c03a0d8e3d19e72632349575c49',X'981FA2C0C377A8C0919ED8C0DC8E95C05BA0C6C0FFD4DCC0E6DEB1C01EBA81C06853C3C0920A01C19E83C4C09334CFC0EF7EB3C0E156BBC08B3BC1C078DEB7C0B957E5C08C4691C01614C5C0');
INSERT INTO "reference_logprobs" VALUES('2f6cbb348ee011428582164603a16f151d4ee03a3e3aec6e44aaec0e6ba53e05','593ec7fa49461b2ae5046da51d1381dda863792d8b5509691f661540c2ad2442 float32','449a0998755bc854aa867e690eea98acf22d1c03a0d8e3d19e72632349575c49',X'FD530FC1806AA5C028E1ECC01131CCC07594C4C0EE24B7C0AC93AAC0C249E9C03118CFC0728DA0C06F49F2C0520BEBC0DE0B8BC064DBDCC02666C5C002599EC09B90F7C0D30AC3C0');
INSERT INTO "reference_logprobs" VALUES('451f5119051bf6179fde2ffdfa836486098f887eeb4593b6b36726d43549397d','593ec7fa49461b2ae5046da51d1381dda863792d8b5509691f661540c2ad2442 float32','449a0998755bc854aa867e690eea98acf22d1c03a0d8e3d19e72632349575c49',X'AC8DDDC00D53B8C03B71DEC04A03B0C0EE5CDBC0AAD1C5C0');
INSERT INTO "reference_logprobs" VALUES('4c763dcfc2febaa2f3dd47b96db359d868badff92ad1186830a44daee97b99be','593ec7fa49461b2ae5046da51d1381dda863792d8b5509691f661540c2ad2442 float32','449a0998755bc854aa867e690eea98acf22d1c03a0d8e3d19e72632349575c49',X'4BAAD1C0234AD9C0A8AAC5C05633D1C055A3C8C0C45FF9C0980E0BC1EE6FC1C07AF0A5C05F7EBEC0B4FBBEC03E63C5C0');
INSERT INTO "reference_logprobs" VALUES('01deb1b6edb936c59f376973b86f54a57b3d826a0abdf5e8d769ee4e457cc1f4','593ec7fa49461b2ae5046da51d1381dda863792d8b5509691f661540c2ad2442 float32','449a0998755bc854aa867e690eea98acf22d1c03a0d8e3d19e72632349575c49',X'619104C166C3F7C01F14DBC06CB1B3C0C6F7D7C01437C9C0');
INSERT INTO "reference_logprobs" VALUES('133af5570619d3ff05a78a8cc01625a64c634f8f21d5dc5990c1da22445f16b4','593ec7fa49461b2ae5046da51d1381dda863792d8b5509691f661540c2ad2442 float32','449a0998755bc854aa867e690eea98acf22d1c03a0d8e3d19e72632349575c49',X'4CAAD1C04BAFE2C0D742BDC0DE43BBC0EAA7E2C076BED0C0001277C0F2C205C17392C6C0F89AACC0C639D9C0E097BBC01E60D5C078FD86C08A9F78C0A779C6C06594DAC0C159BAC02A7C8FC08513EBC050A7C4C08C79C1C066BEDFC00D3AECC01293C4C0');
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
INSERT INTO "replies" VALUES('fca5dea78810f06a',NULL,NULL,NULL,'{}',NULL,NULL,NULL,'stop',NULL,NULL);
INSERT INTO "replies" VALUES('f2cc3e1efda27f6e',NULL,NULL,NULL,'{}',NULL,NULL,NULL,'stop',NULL,NULL);
INSERT INTO "replies" VALUES('12150aab6d1a477c',NULL,NULL,NULL,'{}',NULL,NULL,NULL,'stop',NULL,NULL);
INSERT INTO "replies" VALUES('add6b366cc13cc25',NULL,NULL,NULL,'{}',NULL,NULL,NULL,'stop',NULL,NULL);
INSERT INTO "replies" VALUES('7c43900272b7c4b5',NULL,NULL,NULL,'{}',NULL,NULL,NULL,'stop',NULL,NULL);
INSERT INTO "replies" VALUES('53b58d1ab8ef70f4',NULL,NULL,NULL,'{}',NULL,NULL,NULL,'stop',NULL,NULL);
INSERT INTO "replies" VALUES('9eaf50e13bfdab5a',NULL,NULL,NULL,'{}',NULL,NULL,NULL,'stop',NULL,NULL);
INSERT INTO "replies" VALUES('20d5f3353178db1a',NULL,NULL,NULL,'{}',NULL,NULL,NULL,'stop',NULL,NULL);
INSERT INTO "replies" VALUES('1f960615a2d603d2',NULL,NULL,NULL,'{}',NULL,NULL,NULL,'stop',NULL,NULL);
INSERT INTO "replies" VALUES('8a29e94a790d9094',NULL,NULL,NULL,'{}',NULL,NULL,NULL,'stop',NULL,NULL);
CREATE TABLE retrains (
    adapter TEXT NOT NULL REFERENCES adapters (id),
    user INTEGER NOT NULL REFERENCES users (id),  
    at TEXT NOT NULL,
    PRIMARY KEY (adapter, user)
) STRICT;
CREATE TABLE reward_scores (
    reply TEXT PRIMARY KEY REFERENCES replies (message),
    mean REAL NOT NULL,       
    deviation REAL NOT NULL,  
    at TEXT NOT NULL
) STRICT;
CREATE TABLE schedules (
    id INTEGER PRIMARY KEY,
    user INTEGER REFERENCES users (id),
    cron TEXT NOT NULL,
    time_zone TEXT NOT NULL,
    enabled INTEGER NOT NULL CHECK (enabled IN (0, 1)),
    at TEXT NOT NULL
, grace_minutes INTEGER NOT NULL DEFAULT 60 CHECK (grace_minutes >= 0), every_new INTEGER CHECK (every_new > 0)) STRICT;
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
CREATE TABLE settings (
    id INTEGER PRIMARY KEY,
    user INTEGER REFERENCES users (id),
    name TEXT NOT NULL,
    value TEXT NOT NULL CHECK (json_valid(value)),
    at TEXT NOT NULL
) STRICT;
CREATE TABLE signals (
    id INTEGER PRIMARY KEY,
    user INTEGER NOT NULL REFERENCES users (id),
    reply TEXT NOT NULL REFERENCES replies (message),
    kind TEXT NOT NULL CHECK (kind IN ('retry', 'edit', 'copy', 'abandon')),
    at TEXT NOT NULL
) STRICT;
CREATE TABLE split_openings (  
    opening TEXT PRIMARY KEY,  
    part TEXT NOT NULL CHECK (part IN ('training', 'stopping', 'held_out'))
) STRICT;
CREATE TABLE split_people (
    user INTEGER PRIMARY KEY REFERENCES users (id),
    held_out INTEGER NOT NULL CHECK (held_out IN (0, 1)),  
    at TEXT NOT NULL
) STRICT;
INSERT INTO "split_people" VALUES(1,0,'2026-11-29T13:26:32.544+00:00');
CREATE TABLE split_secret (
    id INTEGER PRIMARY KEY CHECK (id = 1),
    secret TEXT NOT NULL  
) STRICT;
INSERT INTO "split_secret" VALUES(1,'83ebdd6b3fff135ce1f13edec95ce6b120da098234b7a1fca33b47dfb3acdb6f');
CREATE TABLE tokens (
    id INTEGER PRIMARY KEY,
    user INTEGER NOT NULL REFERENCES users (id),
    name TEXT NOT NULL,
    sha256 TEXT NOT NULL UNIQUE,  
    created_at TEXT NOT NULL,
    revoked_at TEXT
) STRICT;
CREATE TABLE users (
    id INTEGER PRIMARY KEY,
    name TEXT NOT NULL UNIQUE COLLATE NOCASE,
    role TEXT NOT NULL CHECK (role IN ('chatter', 'rater', 'operator')),
    password_hash TEXT,  
    created_at TEXT NOT NULL
, kind TEXT NOT NULL DEFAULT 'person'
    CHECK (kind IN ('person', 'anonymous', 'model', 'imported')), forgotten_at TEXT, disabled_at TEXT) STRICT;
INSERT INTO "users" VALUES(1,'owner','operator',NULL,'2026-11-29T13:26:14.925+00:00','person',NULL,NULL);
CREATE TABLE votes (
    id INTEGER PRIMARY KEY,
    user INTEGER NOT NULL REFERENCES users (id),
    reply TEXT NOT NULL REFERENCES replies (message),
    value INTEGER NOT NULL CHECK (value IN (-1, 0, 1)),
    reasons TEXT NOT NULL DEFAULT '[]' CHECK (json_valid(reasons)),
    words TEXT NOT NULL DEFAULT '',
    at TEXT NOT NULL
) STRICT;
INSERT INTO "votes" VALUES(1,1,'fca5dea78810f06a',-1,'[]','','2026-11-29T13:26:14.934+00:00');
INSERT INTO "votes" VALUES(2,1,'add6b366cc13cc25',1,'[]','','2026-11-29T13:26:14.939+00:00');
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
INSERT INTO "sqlite_sequence" VALUES('conversations',5);
INSERT INTO "sqlite_sequence" VALUES('messages',15);
INSERT INTO "sqlite_sequence" VALUES('nights',2);
COMMIT;
