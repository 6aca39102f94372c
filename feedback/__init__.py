"""The ledger: feedback, conversations, accounts and records in one database. Never imports torch or gradio."""
