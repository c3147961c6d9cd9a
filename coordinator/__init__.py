"""The gateway: turns a federated method into plans and tasks, folds updates, keeps the journal."""
