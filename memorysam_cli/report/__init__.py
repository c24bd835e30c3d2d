"""What people see: the terminal (``console``, ``live``), ``figures``, ``pictures`` of scenes, HTML ``pages``."""
