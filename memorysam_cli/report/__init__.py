"""What people see: ``console`` the terminal, ``live`` progress on it, ``figures``, ``pictures`` of scenes, ``pages``."""
