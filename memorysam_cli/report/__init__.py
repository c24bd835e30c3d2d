"""What people see: ``console`` the terminal, ``live`` its progress, ``figures``, ``pictures`` of scenes, ``pages``."""
