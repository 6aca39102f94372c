"""The actions of operators, with their audit rows."""
