include $(sort $(wildcard $(BR2_EXTERNAL_DUNLIN_PATH)/package/*/*.mk))
